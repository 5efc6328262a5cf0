"""LIME: equality with the lime package, closed forms, what it counts, when it stops, and what it says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import analyzers.attribution.lime as module
from analyzers.attribution.lime import LIME
from tests.gradient_nets import batch_of, close_to_scale, conv_net, linear_net, made, pictures
from xai import local_fit, run
from xai.batch import Batch
from xai.errors import XaiError
from xai.images import Image, Images, load_images
from xai.local_fit import Local, explain_segments, forwards, masks
from xai.model import Model
from xai.panels import AnyPanel, Heatmap, Number, Picture, Table, Text
from xai.perturbation import Found
from xai.sampler import Sampler
from xai.segments import mean_colours, segment
from xai.subject import Subject, as_targets
from xai.surrogate import fit
from xai.targets import Target
from xai.zoo.loading import load

FEW: dict[str, Any] = {"samples": 60, "segments": 9, "bootstrap": 20, "segmentation": "grid"}


@pytest.fixture(scope="module")
def photo20() -> Model:
    return load("xai:photo20", device="cpu")


def sampler_of(batch: Batch, *targets: str, value: str = "logit", i: int = 0, owners: tuple[int, ...] = ()) -> Sampler:
    return Sampler(batch, i, [batch.bind(Target(text)) for text in targets], value, owners)


def found(lime: LIME, batch: Batch, *targets: str) -> list[Found]:
    return lime.picture(sampler_of(batch, *(targets or ("class:1",)), value=lime.value))


def panel(one: Found, key: str) -> Any:
    (chosen,) = [p for p in one.panels if p.key == key]
    return chosen


def noisy(size: int = 12, channels: int = 3, count: int = 1) -> np.ndarray:
    return pictures(count, size, channels)


class Scored(nn.Module):
    """Two classes: a score of the picture, and zero."""

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.score = score

    def forward(self, x: Tensor) -> Tensor:
        y = self.score(x)
        return torch.stack([torch.zeros_like(y), y], 1)


# --- the same as the lime package ---
def theirs(model: Model, pixels: np.ndarray, hide: int | None, how: str, count: int,
           softmax: bool) -> tuple[np.ndarray, np.ndarray, Any]:
    """(masks, segments, explanation) of the lime package for pixels (H, W, 3) uint8."""
    from lime.lime_image import LimeImageExplainer

    ready, kept = model.preprocessing, []

    def classify(images: np.ndarray) -> np.ndarray:
        shown = [ready(Image.of("form", np.ascontiguousarray(one.transpose(2, 0, 1)))).input for one in images]
        logits = model(torch.stack(shown)).double()
        return np.asarray(logits.softmax(1) if softmax else logits)

    class Watched(LimeImageExplainer):
        def data_labels(self, *args: Any, **more: Any) -> Any:
            kept.append(super().data_labels(*args, **more))
            return kept[0]

    cut = None if how == "quickshift" else lambda image: segment(image, how, 36).numpy()
    explained = Watched(random_state=np.random.RandomState(3)).explain_instance(
        pixels, classify, top_labels=3, hide_color=hide, num_samples=count, segmentation_fn=cut)
    return kept[0][0], explained.segments, explained


@pytest.mark.parametrize(("name", "how", "softmax"), [("coffee", "quickshift", True), ("chelsea", "slic", False),
                                                     ("rocket", "slic", True)])
def test_end_to_end_it_is_the_lime_package(photo20: Model, name: str, how: str, softmax: bool,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """The analyzer itself, with its own segments, given the masks that the package drew; three targets together."""
    batch = next(photo20.prepare(load_images(f"sample:{name}")))
    z, segments, explained = theirs(photo20, batch.seen[0], 0, how, 120, softmax)
    monkeypatch.setattr(local_fit, "masks", lambda n, count, paired, generator: torch.from_numpy(z).split(50))
    lime = LIME(how, 36, samples=120, paired=False, baseline="black", bootstrap=0,
                value="probability" if softmax else "logit")
    targets = [f"class:{c}" for c in explained.top_labels]
    labels = torch.from_numpy(segments).long()
    maps = found(lime, batch, *targets)
    for one, c in zip(maps, explained.top_labels, strict=True):
        weights = torch.zeros(z.shape[1], dtype=torch.float64)
        for s, weight in explained.local_exp[c]:
            weights[s] = weight
        assert z.shape[1] >= (4 if how == "quickshift" else 25)
        assert_close(one.values, weights[labels], rtol=0, atol=1e-6)
        assert float(weights.abs().max()) > 1e-4
    # the package keeps one score, that of the class it fitted last, the first of top_labels
    assert panel(maps[0], "r2_in").value == pytest.approx(explained.score, abs=1e-5)
    assert panel(maps[1], "r2_in").value != pytest.approx(explained.score, abs=1e-3)


def test_intercept_and_mean_colours_are_those_of_the_lime_package(photo20: Model) -> None:
    """Which cuts the mean colour to whole numbers: given that picture to hide with, nothing is different."""
    batch = next(photo20.prepare(load_images("sample:coffee")))
    pixels = batch.seen[0]
    z, segments, explained = theirs(photo20, pixels, None, "slic", 100, False)
    labels, c = torch.from_numpy(segments).long(), explained.top_labels[0]
    whole = mean_colours(torch.from_numpy(pixels.copy()).permute(2, 0, 1).double(), labels).floor().to(torch.uint8)
    cut = photo20.preprocessing(Image.of("hidden", whole.numpy())).input
    sampler = sampler_of(batch, f"class:{c}")
    given = [torch.from_numpy(z)]
    (one,) = explain_segments(sampler, labels, cut, "lime", paired=False, given=given)
    assert one.fit.intercept == pytest.approx(explained.intercept[c], abs=1e-5)
    weights = torch.tensor([w for _, w in sorted(explained.local_exp[c])], dtype=torch.float64)
    assert_close(one.fit.weights, weights, rtol=0, atol=1e-6)
    fill = mean_colours(sampler.x, labels)
    assert_close(fill, cut, rtol=0, atol=1 / 255 / 0.2)
    (near,) = explain_segments(sampler, labels, fill, "lime", paired=False, given=given)
    assert 0 < float((near.fit.weights - weights).abs().max()) < 0.02 * float(weights.abs().max())


# --- closed forms ---
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("baseline", ["mean", "zero", "white", "blur"])
def test_a_linear_network_gives_what_each_segment_adds(paired: bool, baseline: str) -> None:
    net = linear_net(size=12)
    batch = batch_of(made(net, size=12), noisy())
    lime = LIME(**FEW, paired=paired, alpha=0.0, baseline=baseline)
    labels = segment(batch.seen[0], "grid", 9)
    x = batch.inputs[0]
    fill = mean_colours(x, labels) if baseline == "mean" else sampler_of(batch, "top1").baseline(baseline, "lime")
    for one, c in zip(found(lime, batch, "class:1", "class:3"), (1, 3), strict=True):
        parts = (net[1].weight.detach()[c].view(3, 12, 12) * (x - fill)).sum(0)
        adds = torch.stack([parts[labels == s].sum() for s in range(9)])
        assert_close(one.values, adds[labels], rtol=0, atol=1e-9)
        assert one.error is not None
        assert float(one.error.max()) < 1e-9
        for key in ("r2", "r2_in"):
            assert panel(one, key).value == pytest.approx(1)
        assert panel(one, "stability").value == 1
        note = panel(one, "fit").note
        assert f"{float(batch.output()[0, c]):.4g} with all segments shown" in note
        assert f"{float(batch.output()[0, c] - adds.sum()):.4g} with none" in note


def test_a_contrast_is_the_difference_of_two_classes() -> None:
    batch = batch_of(made(conv_net(), size=12), noisy())
    one, two, both = found(LIME(**FEW), batch, "class:1", "class:3", "class:1 - class:3")
    assert_close(both.values, one.values - two.values, rtol=0, atol=1e-9)


def test_it_is_the_class_of_the_picture_that_is_asked_for_whatever_the_masked_picture_shows() -> None:
    """The score jumps from class to class as segments are hidden; the weights are those of the class asked for."""
    batch = batch_of(made(Scored(lambda x: 8 * x[:, 0, :6].mean((1, 2)) - x[:, 0, 6:].mean((1, 2))), size=12), noisy())
    (one,) = found(LIME(**FEW, alpha=0.0, baseline="zero"), batch, "class:1")
    (top,) = found(LIME(**FEW, alpha=0.0, baseline="zero"), batch, "top1")
    said = int(batch.output()[0].argmax())
    assert_close(top.values, one.values if said else one.values * 0, rtol=0, atol=1e-9)
    assert len(one.values.unique()) > 3


def test_a_segment_of_its_own_mean_colour_has_no_weight() -> None:
    pixels = noisy()
    labels = segment(np.zeros((12, 12, 3), np.uint8), "grid", 9)
    pixels[0][:, (labels == 4).numpy()] = 0.6
    batch = batch_of(made(conv_net(), size=12), pixels)
    (one,) = found(LIME(**FEW | {"samples": 400}), batch)
    weights = torch.stack([one.values[labels == s][0] for s in range(9)])
    assert float(weights[4].abs()) < 0.1 * float(weights.abs().median())


@pytest.mark.parametrize("value", ["probability", "log_odds"])
def test_the_score_may_be_a_probability(value: str) -> None:
    batch = batch_of(made(conv_net(), size=12), noisy())
    sampler = sampler_of(batch, "class:1", value=value)
    labels = segment(batch.seen[0], "grid", 9)
    z = torch.cat(list(masks(9, 60, True, sampler.generator("lime"))))
    fill = mean_colours(sampler.x, labels)
    forms = torch.where(z[:, labels][:, None] == 1, sampler.x, fill)
    shares = batch.model(forms).double().softmax(1)[:, 1]
    y = shares if value == "probability" else torch.logit(shares)
    (expected,) = fit(z, y[:, None], paired=True)
    (one,) = found(LIME(**FEW, value=value), batch)
    assert_close(one.values, expected.weights[labels], rtol=0, atol=1e-9)
    assert panel(one, "segments").columns[1].unit == {"log_odds": "log-odds"}.get(value, value)
    weak = value == "probability" and panel(one, "r2").value < 0.5
    assert ("Logits add up better" in panel(one, "fit").text) == weak


# --- masks, and what they cost ---
@pytest.mark.parametrize("paired", [False, True])
def test_masks_come_in_blocks_that_fewer_masks_begin(paired: bool) -> None:
    def drawn(count: int) -> Tensor:
        blocks = list(masks(40, count, paired, torch.Generator().manual_seed(1)))
        assert max(map(len, blocks)) <= local_fit.BLOCK
        return torch.cat(blocks)

    z = drawn(700)
    assert z.dtype == torch.uint8
    assert z.unique().tolist() == [0, 1]
    assert z.all(1).nonzero().tolist() == [[0]]
    for count in (2, 255, 256, 300):
        assert_close(drawn(count), z[:count], rtol=0, atol=0)
    assert_close(z[2:].double().mean(0), torch.full((40,), 0.5, dtype=torch.float64), rtol=0, atol=0.07)
    if paired:
        assert (z[::2] + z[1::2] == 1).all()


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("samples", [60, 61])
def test_the_plan_is_what_is_counted(paired: bool, samples: int) -> None:
    model = made(conv_net(), size=12)
    lime = LIME(**FEW | {"samples": samples}, paired=paired)
    subject = Subject((model,), load_images(noisy(count=2)), as_targets("top3"))
    cost = lime(subject).cost
    assert (cost.forwards, cost.backwards) == (2 * (1 + forwards(samples, paired)), 0)
    assert lime.cost(subject).forwards == cost.forwards
    assert lime.passes(model).forwards == samples - paired


def test_the_chunk_changes_nothing() -> None:
    pixels = noisy(count=2)

    def mapped(chunk: int | None) -> list[Tensor]:
        model = made(conv_net(), size=12, precision="float32")
        result = run.explain(model, pixels, "lime", chunk=chunk, settings={f"lime.{k}": str(v) for k, v in FEW.items()})
        return [torch.as_tensor(p.values) for p in result.result.panels if isinstance(p, Heatmap)]

    together = mapped(None)
    for chunk in (1, 7, 32):
        for one, other in zip(mapped(chunk), together, strict=True):
            close_to_scale(one, other)


def test_settled_segments_end_the_asking_each_target_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 1 depends on two segments and settles at the first look; class 2 on none more than on another."""
    labels = segment(np.zeros((12, 12, 3), np.uint8), "grid", 9)
    places = torch.stack([labels == 0, labels == 4]).double()

    class Three(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.einsum("nchw,shw->sn", x, places.to(x))
            return torch.stack([x.mean((1, 2, 3)), 3 * a + 2 * b + a * b, torch.sin(40 * x.sum((1, 2, 3)))], 1)

    model = made(nn.Sequential(Three()), size=12)
    batch = batch_of(model, noisy())
    more = FEW | {"samples": 1500, "baseline": "zero", "top": 2}

    def counted(lime: LIME, *targets: str, owners: tuple[int, ...] = ()) -> tuple[list[Found], int]:
        sampler, before = sampler_of(batch, *targets, owners=owners), model.cost.forwards
        return lime.picture(sampler), model.cost.forwards - before

    plain, forwards = counted(LIME(**more), "class:1")
    assert forwards == 1499
    (early,), forwards = counted(LIME(**more, settle=True), "class:1")
    assert forwards == 255
    assert "From 256 masks" in panel(early, "fit").note
    (first,), _ = counted(LIME(**more | {"samples": 256}), "class:1")
    assert_close(early.values, first.values, rtol=0, atol=0)
    assert_close(early.values, plain[0].values, rtol=0, atol=0.3 * float(plain[0].values.max()))
    (mine, open_), forwards = counted(LIME(**more, settle=True), "class:1", "class:2")
    assert forwards == 1499
    assert_close(mine.values, early.values, rtol=0, atol=0)
    assert [panel(mine, key) == panel(early, key) for key in ("fit", "segments", "stability", "r2")] == [True] * 4
    assert "From 1500 masks" in panel(open_, "fit").note
    looked: list[int] = []
    monkeypatch.setattr(local_fit, "fit", lambda z, *args: looked.append(len(z)) or fit(z, *args))
    three, forwards = counted(LIME(**more, settle=True), "class:1", "class:2", "class:0", owners=(0, 1, 0))
    assert forwards == 1499
    assert looked == [256, 512, 1024, 256, 1500]  # three looks, and what came of them
    assert [panel(one, "fit").note.split()[1] for one in three] == ["256", "1500", "256"]
    (own, rival), forwards = counted(LIME(**more, settle=True), "class:1", "class:2", owners=(0, 0))
    assert forwards == 255  # what is there for another waits for nothing
    assert_close(own.values, early.values, rtol=0, atol=0)
    assert "From 256 masks" in panel(rival, "fit").note
    assert LIME.upper


# --- any network that gives scores ---
def test_only_a_forward_is_needed() -> None:
    net = conv_net().eval()
    options: dict[str, Any] = {"mean": [0.4] * 3, "std": [0.3] * 3, "size": 12}
    called: list[int] = []

    def forward(x: Tensor) -> Tensor:
        called.append(len(x))
        return net(x)

    given = found(LIME(**FEW), batch_of(Model(forward=forward, **options), noisy()))[0]
    assert sum(called) == 1 + 59
    close_to_scale(given.values, found(LIME(**FEW), batch_of(Model(net, **options), noisy()))[0].values)


@pytest.mark.parametrize("channels", [1, 5])
def test_other_numbers_of_channels(channels: int) -> None:
    pixels = torch.from_numpy(noisy(channels=channels))
    batch = batch_of(made(conv_net(channels=channels), size=12, channels=channels), pixels)
    (one,) = found(LIME(**FEW | {"segmentation": "slic"}), batch)
    assert one.values.shape == (12, 12)
    assert panel(one, "segments_drawn").pixels.shape == (12, 12, 3)
    assert 4 <= len(one.values.unique()) <= 16


def test_heads_that_hold_no_classes() -> None:
    one_number = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    result = LIME(**FEW, value="probability")(Subject((made(one_number, size=12),), load_images(noisy())))
    (values,) = [p.values for p in result.panels if p.key == "map" and isinstance(p, Heatmap)]
    assert len(np.unique(values)) == 9
    (table,) = [p for p in result.panels if p.key == "segments" and isinstance(p, Table)]
    assert table.columns[1].unit == "score"
    batch = batch_of(made(nn.Conv2d(3, 4, 3, padding=1), size=12), noisy())
    (region,) = found(LIME(**FEW), batch, "mask:2")
    assert len(region.values.unique()) == 9


# --- segments ---
def test_a_label_map_of_the_picture_cuts_it(tmp_path: Path) -> None:
    np.save(tmp_path / "halves.npy", (np.arange(20)[None] >= 10).repeat(20, 0))
    image = Image.of("two halves.png", np.random.default_rng(0).random((3, 20, 20), dtype=np.float32))
    model = made(conv_net(), size=12)
    (batch,) = model.prepare(Images.of([image]))
    (one,) = found(LIME(str(tmp_path / "halves.npy"), samples=60), batch)
    assert one.values[:, :6].unique().numel() == one.values[:, 6:].unique().numel() == 1
    assert one.values[0, 0] != one.values[0, 11]
    assert "of all 2 weights exclude zero" in panel(one, "fit").text  # none is more on top than another
    assert not [p for p in one.panels if p.key == "stability"]
    np.save(tmp_path / "halves.npy", np.zeros((7, 7), dtype=int))
    with pytest.raises(XaiError, match="12 x 12 or 20 x 20 pixels.*got 7 x 7"):
        found(LIME(str(tmp_path / "halves.npy"), samples=60), batch)
    (tmp_path / "halves.npy").unlink()
    with pytest.raises(XaiError, match=r"lime.segmentation must be one of slic"):
        LIME(str(tmp_path / "halves.npy"))


def test_smoothing_is_for_the_segmentation_alone() -> None:
    batch = batch_of(made(conv_net(), size=12), noisy())
    plain, smooth = (LIME(**FEW | {"segmentation": "watershed", "smooth": s}) for s in (0.0, 2.0))
    assert not torch.equal(found(plain, batch)[0].values, found(smooth, batch)[0].values)
    same = [found(LIME(**FEW | {"smooth": s}), batch)[0].values for s in (0.0, 2.0)]
    assert_close(same[0], same[1], rtol=0, atol=0)


# --- refusals ---
@pytest.mark.parametrize(("settings", "sentence"), [
    ({"segmentation": "quikshift"}, "Did you mean quickshift"),
    ({"segmentation": "quickshift"}, "the number of segments must be at least 2; got 1"),
    ({"segments": 144}, "the number of segments must be less than the 30 pairs of masks; got 144. "
                        "Ask for at least 290 masks"),
    ({"segments": 30}, "less than the 30 pairs of masks; got 30. Ask for at least 62 masks"),
    ({"segments": 144, "paired": False}, "less than the 60 masks; got 144. Ask for at least 145 masks"),
    ({"baseline": "mauve"}, "lime.baseline must be black"),
    ({"value": "odds"}, "lime.value must be one of logit"),
    ({"samples": 3}, "lime.samples must be at least 16"),
    ({"kernel_width": 0.0}, "lime.kernel_width must be at least 0.01"),
    ({"smooth": -1.0}, "lime.smooth must be at least 0"),
])
def test_bad_settings_get_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(XaiError) as told:
        found(LIME(**FEW | settings), batch_of(made(conv_net(), size=12), noisy()))
    assert sentence in str(told.value)


# --- what it says of itself ---
def local(batch: Batch, lime: LIME, target: str = "class:1") -> tuple[Local, Tensor]:
    sampler = sampler_of(batch, target)
    labels = segment(batch.seen[0], lime.segmentation, lime.segments)
    (one,) = explain_segments(sampler, labels, mean_colours(sampler.x, labels), "lime", samples=lime.samples,
                              draws=lime.bootstrap)
    return one, labels


def test_the_panels_say_what_the_fit_says() -> None:
    batch = batch_of(made(conv_net(), size=12), noisy())
    lime = LIME(**FEW, top=3)
    (one,), (expected, labels) = found(lime, batch), local(batch, lime)
    assert_close(one.values, expected.fit.weights[labels], rtol=0, atol=0)
    assert one.error is not None
    assert_close(one.error, expected.fit.error[labels], rtol=0, atol=0)
    assert panel(one, "r2").value == expected.fit.r2_out
    assert panel(one, "r2_in").value == expected.fit.r2
    assert panel(one, "effective").value == expected.fit.effective
    kept = expected.held(3)
    assert kept is not None
    shares, same = kept
    assert panel(one, "stability").value == same
    top = expected.resampled.abs().topk(3).indices
    assert shares.tolist() == pytest.approx([float((top == s).any(1).double().mean()) for s in range(9)])
    chosen = set(expected.fit.top(3).tolist())
    assert same == pytest.approx(np.mean([set(row.tolist()) == chosen for row in top]))
    rows = panel(one, "segments").rows
    assert [row[0] for row in rows] == expected.fit.weights.abs().topk(3).indices.tolist()
    drawn = expected.resampled.numpy()
    for s, weight, low, high, least, most, area, settled, share in rows:
        assert (least, most) == pytest.approx(np.quantile(drawn[:, s], [0.025, 0.975]))
        assert weight == expected.fit.weights[s]
        assert high - low == pytest.approx(2 * 1.96 * float(expected.fit.error[s]), rel=1e-4)
        assert area == pytest.approx(100 * float((labels == s).double().mean()))
        assert share == shares[s]
        assert settled == (low * high > 0 and share >= 0.95)
    marks = panel(one, "segments_drawn").marks
    assert {int(mark.label.split(":")[0]) for mark in marks} == chosen
    assert "mean colour" in panel(one, "fit").note
    assert {p.picture for p in one.panels} == {batch.hashes[0]}


def test_without_a_bootstrap_the_errors_say_what_is_settled() -> None:
    batch = batch_of(made(linear_net(size=12), size=12), noisy())
    (one,) = found(LIME(**FEW | {"bootstrap": 0}, alpha=0.0), batch)
    assert not [p for p in one.panels if p.key == "stability"]
    assert {len(row) for row in panel(one, "segments").rows} == {6}
    assert [row[-1] for row in panel(one, "segments").rows] == [True] * 5
    assert "are settled" in panel(one, "fit").text
    (plain,) = found(LIME(**FEW, alpha=0.0), batch)
    assert_close(one.values, plain.values, rtol=0, atol=0)


def test_a_low_r2_is_told_and_what_it_means() -> None:
    """The score is a product of signs: no sum over segments is like it, however well its weights are known."""
    labels = segment(np.zeros((12, 12, 3), np.uint8), "grid", 9)

    def parity(x: Tensor) -> Tensor:
        shown = torch.stack([x[:, :, labels == s].abs().amax((1, 2)) > 1e-6 for s in (0, 3, 7)])
        return (1 - 2 * shown.double()).prod(0).to(x)

    batch = batch_of(made(Scored(parity), size=12), noisy())
    (one,) = found(LIME(**FEW | {"samples": 600, "baseline": "zero"}, top=9), batch)
    assert panel(one, "r2").value < 0.1
    settled = [row[-1] for row in panel(one, "segments").rows]
    assert len(settled) == 9
    assert sum(settled) <= 2  # all are listed, and yet none is sure to have a weight
    assert panel(one, "fit").tone == "warning"
    assert "do not describe the model" in panel(one, "fit").text
    (short,) = found(LIME(**FEW | {"samples": 16}, alpha=0.0, baseline="zero", paired=False), batch)
    assert panel(short, "r2").value < 0.5 < panel(short, "r2_in").value
    assert "they are too few" in panel(short, "fit").text
    (good,) = found(LIME(**FEW, alpha=0.0), batch_of(made(linear_net(size=12), size=12), noisy()))
    assert panel(good, "fit").tone == "plain"
    assert "explains 100%" in panel(good, "fit").text


@pytest.mark.parametrize(("score", "said"), [
    (lambda x: x.mean((1, 2, 3)) * 0 + 3, "does not depend on which segments are shown"),
    (lambda x: torch.where(x.mean((1, 2, 3)) == x.mean((1, 2, 3)), torch.nan, 0.0), "not a finite number"),
])
def test_no_fit_is_told(score: Callable[[Tensor], Tensor], said: str) -> None:
    (one,) = found(LIME(**FEW), batch_of(made(Scored(score), size=12), noisy()))
    assert panel(one, "r2").value is None
    assert panel(one, "fit").tone == "warning"
    assert said in panel(one, "fit").text
    for p in one.panels:
        rows = p.rows if isinstance(p, Table) else [[p.value]] if isinstance(p, Number) else []
        assert all(v is None or np.isfinite(v) for row in rows for v in row)
    assert one.values.isnan().all() or not one.values.any()


def test_panels_are_of_the_known_kinds_and_belong_to_the_file() -> None:
    (one,) = found(LIME(**FEW), batch_of(made(conv_net(), size=12), noisy()))
    kinds: list[type[AnyPanel]] = [type(p) for p in one.panels]
    assert kinds == [Text, Number, Number, Number, Number, Table, Picture]
    assert len({p.key for p in one.panels}) == len(kinds)
    assert module.LIME.name() == "lime"
    import lime  # the package of that name is still that package

    assert lime.__file__ != module.__file__
    assert dataclasses.is_dataclass(LIME)
