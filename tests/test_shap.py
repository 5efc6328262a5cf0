"""The Shapley methods on networks: the definition by brute force, and what the shap package itself gives."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from analyzers.attribution._backgrounds import drawn_from
from analyzers.attribution._shap import quiet_shap
from analyzers.attribution.shap_gradient import ShapGradient
from analyzers.attribution.shap_kernel import ShapKernel
from analyzers.attribution.shap_partition import ShapPartition
from tests.gradient_nets import Residual, batch_of, close_to_scale, conv_net, linear_net, made, mapped, pictures
from tests.test_shapley import brute_force, every, place
from xai.attribution import Attribution
from xai.baselines import baseline
from xai.batch import Batch
from xai.errors import XaiError
from xai.images import load_images
from xai.model import Model
from xai.panels import AnyPanel, Number, Table, Text
from xai.sampler import log_odds
from xai.segments import mean_colours, segment
from xai.targets import Target

CLASS = 1
FORWARD_ONLY: list[Attribution] = [ShapKernel(segmentation="grid", segments=9, samples=64),
                                   ShapPartition(evaluations=40)]
EVERY: list[Attribution] = [*FORWARD_ONLY, ShapGradient(samples=8)]
by_name = {"ids": lambda a: a.name()}


def batch(net: nn.Module | None = None, size: int = 12, n: int = 1, seed: int = 0, **more: Any) -> Batch:
    return batch_of(made(conv_net() if net is None else net, size=size), pictures(n, size), seed=seed, **more)


def panels(analyzer: Attribution, b: Batch) -> dict[str, AnyPanel]:
    return {panel.key: panel for panel in analyzer.maps(b, b.bind(Target(f"class:{CLASS}"))).panels}


def labels_file(folder: Path, labels: np.ndarray) -> str:
    np.save(folder / "labels.npy", labels)
    return str(folder / "labels.npy")


def game(b: Batch, labels: Tensor, fill: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """(2^n, classes): the scores of every coalition of segments, painted one by one."""
    scores = []
    for row in every(int(labels.max()) + 1):
        shown = row[labels].bool()
        scores.append(value(b.model(torch.where(shown, b.inputs[0], fill)[None]))[0])
    return torch.stack(scores).double()


def by_segment(values: Tensor, labels: Tensor) -> Tensor:
    """(n,): the value that a painted map has on each segment, which is one."""
    found = torch.stack([values[labels == s][0] for s in range(int(labels.max()) + 1)])
    assert torch.equal(found[labels], values)
    return found


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda z: z, "probability": lambda z: z.softmax(1), "log_odds": log_odds}


# --- kernel ---
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("filled", ["mean", "grey", "blur"])
def test_kernel_is_the_shapley_value_where_all_coalitions_are_asked(value: str, filled: str) -> None:
    b = batch()
    analyzer = ShapKernel(segmentation="grid", segments=9, samples=512, baseline=filled, value=value)
    labels = segment(b.seen[0], "grid", 9)
    fill = mean_colours(b.inputs[0], labels) if filled == "mean" else baseline(b, filled, "test")[0]
    truth = brute_force(game(b, labels, fill, VALUES[value]))[:, CLASS]
    maps = analyzer.maps(b, b.bind(Target(f"class:{CLASS}")))
    assert_close(by_segment(maps.values[0], labels), truth, rtol=0, atol=1e-9)
    assert maps.error is not None
    assert float(maps.error.max()) == 0


def test_kernel_on_slic_superpixels_is_the_shapley_value_in_single_precision() -> None:
    model = made(conv_net(), size=24, precision="float32")
    b = batch_of(model, pictures(1, 24))
    labels = segment(b.seen[0], "slic", 9)
    n = int(labels.max()) + 1
    assert 6 <= n <= 12
    truth = brute_force(game(b, labels, mean_colours(b.inputs[0], labels), VALUES["logit"]))[:, CLASS]
    found = mapped(ShapKernel(segments=9, samples=4096), b, f"class:{CLASS}")
    assert_close(by_segment(found[0], labels).double(), truth, rtol=0, atol=1e-6)


def test_kernel_from_a_sample_is_within_its_standard_errors_and_adds_up() -> None:
    b = batch(Residual())
    labels = segment(b.seen[0], "grid", 12)
    assert int(labels.max()) + 1 == 12
    truth = brute_force(game(b, labels, mean_colours(b.inputs[0], labels), VALUES["logit"]))[:, CLASS]
    analyzer = ShapKernel(segmentation="grid", segments=12, samples=240)
    maps = analyzer.maps(b, b.bind(Target(f"class:{CLASS}")))
    assert maps.error is not None
    phi, error = by_segment(maps.values[0], labels), by_segment(maps.error[0], labels)
    off = (phi - truth).abs() / error
    assert 0.05 < float(off.square().mean().sqrt()) < 2
    assert float(off.max()) < 4
    assert float(off.max()) > 0
    ends = game(b, torch.zeros_like(labels), mean_colours(b.inputs[0], labels), VALUES["logit"])[:, CLASS]
    assert_close(phi.sum(), ends[1] - ends[0], rtol=0, atol=1e-10)
    told = panels(analyzer, b)
    gap, none = told["efficiency_gap"], told["none"]
    assert isinstance(gap, Number)
    assert isinstance(none, Number)
    assert gap.value == pytest.approx(0, abs=1e-10)
    assert none.value == pytest.approx(float(ends[0]), abs=1e-10)


def test_kernel_equals_shap_s_kernel_explainer_at_full_enumeration() -> None:
    b = batch()
    labels = segment(b.seen[0], "grid", 9)
    values = game(b, labels, mean_colours(b.inputs[0], labels), VALUES["logit"])[:, CLASS]
    with quiet_shap() as shap:
        explainer = shap.KernelExplainer(lambda z: values[place(torch.from_numpy(z))].numpy(), np.zeros((1, 9)))
        theirs = explainer.shap_values(np.ones(9), nsamples=2**9, l1_reg=0, silent=True)
    ours = mapped(ShapKernel(segmentation="grid", segments=9, samples=512), b, f"class:{CLASS}")
    assert_close(by_segment(ours[0], labels), torch.from_numpy(theirs), rtol=0, atol=1e-8)


def test_kernel_asks_the_same_coalitions_for_all_targets_and_each_has_its_own_map() -> None:
    b = batch()
    analyzer = ShapKernel(segmentation="grid", segments=16, samples=64)
    targets = [b.bind(Target(text)) for text in ("class:0", "class:2", "class:0 - class:2")]
    b.output()
    before = b.model.cost.forwards
    together = analyzer.maps_for(b, targets)
    assert b.model.cost.forwards - before == 65 == analyzer.passes(b.model).forwards
    for target, maps in zip(targets, together, strict=True):
        assert_close(analyzer.maps(b, target).values, maps.values, rtol=0, atol=1e-12)
    assert_close(together[0].values - together[1].values, together[2].values, rtol=0, atol=1e-12)


def test_kernel_tells_how_far_to_trust_it(tmp_path: Path) -> None:
    b = batch()
    exact = panels(ShapKernel(segmentation="grid", segments=9, samples=1024), b)
    many = panels(ShapKernel(segmentation="grid", segments=9, samples=200), b)
    few = panels(ShapKernel(segmentation="grid", segments=9, samples=40), b)
    said = {key: told["fit"] for key, told in (("exact", exact), ("many", many), ("few", few))}
    assert all(isinstance(one, Text) for one in said.values())
    assert "the shares are exact" in said["exact"].text
    assert (said["exact"].tone, said["many"].tone, said["few"].tone) == ("plain", "plain", "warning")
    assert "72 samples or more are advised" in said["few"].text
    counts = [told["coalitions"].value for told in (exact, many, few)]
    assert counts == [510, 200, 40]
    assert "nothing is left to chance" in exact["coalitions"].note
    table = many["segments"]
    assert isinstance(table, Table)
    assert len(table.rows) == 5
    sizes = [abs(row[1]) for row in table.rows]
    assert sizes == sorted(sizes, reverse=True)
    assert all(row[2] < row[1] < row[3] for row in table.rows)
    assert all(row[1] == row[2] == row[3] for row in exact["segments"].rows)


def test_kernel_flags_a_sample_that_does_not_tell_the_segments_apart() -> None:
    analyzer = ShapKernel(segmentation="grid", segments=9, samples=18)
    told = [panels(analyzer, batch(seed=seed))["fit"] for seed in range(12)]
    assert all(one.tone == "warning" for one in told)
    poor = ["do not tell all 9 segments apart" in one.text for one in told]
    assert any(poor)
    assert not all(poor)


def test_kernel_refuses_too_few_samples_or_segments(tmp_path: Path) -> None:
    b = batch()
    with pytest.raises(XaiError, match="shap_kernel.samples must be at least 72 for the 36 segments of the picture; "
                                       "got 71. Take 288 or more"):
        mapped(ShapKernel(segmentation="grid", segments=36, samples=71), b)
    one = labels_file(tmp_path, np.zeros((12, 12), dtype=np.int64))
    with pytest.raises(XaiError, match="number of segments must be at least 2; got 1"):
        mapped(ShapKernel(segmentation=one), b)
    with pytest.raises(XaiError, match="shap_kernel.segmentation must be one of slic"):
        ShapKernel(segmentation="voronoi")
    with pytest.raises(XaiError, match="shap_kernel.baseline must be black"):
        ShapKernel(baseline="pink")


def test_kernel_gives_a_segment_that_shows_its_fill_anyway_nothing(tmp_path: Path) -> None:
    pixels = pictures(1, 12)
    pixels[:, :, :, 8:] = 0.5
    b = batch_of(made(conv_net(), size=12), pixels)
    labels = np.arange(12)[:, None] // 6 * 3 + np.arange(12) // 4
    found = mapped(ShapKernel(segmentation=labels_file(tmp_path, labels), samples=64, baseline="grey"), b)
    assert float(found[0, :, 8:].abs().max()) < 1e-12
    assert float(found[0, :, :8].abs().min()) > 1e-6


# --- partition ---
def partition_by_shap(b: Batch, evaluations: int, fill: Tensor) -> Tensor:
    """(H, W): shap's own explainer and masker, channels last, summed over the channels."""

    def score(rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = b.model(torch.from_numpy(rows).permute(0, 3, 1, 2))[:, [CLASS]].numpy()
        return found

    x = b.inputs[0].permute(1, 2, 0).numpy()
    with quiet_shap() as shap:
        explainer = shap.PartitionExplainer(score, shap.maskers.Image(fill.permute(1, 2, 0).numpy()))
        found = explainer(x[None], max_evals=evaluations, batch_size=10, silent=True)
    return torch.from_numpy(found.values[0, ..., 0]).sum(-1)


@pytest.mark.parametrize("evaluations", [16, 17, 100, 300])
@pytest.mark.parametrize("level", ["grey", "blur"])
def test_partition_is_what_shap_gives_with_its_own_masker(evaluations: int, level: str) -> None:
    b = batch(size=16)
    theirs = partition_by_shap(b, evaluations, baseline(b, level, "test")[0])
    ours = mapped(ShapPartition(evaluations=evaluations, baseline=level), b, f"class:{CLASS}")[0]
    assert len(ours.unique()) > 3
    close_to_scale(ours, theirs, 1e-9)


def test_partition_to_the_end_is_the_owen_value_of_the_halving() -> None:
    """2 x 3 pixels; the longer side is cut first, of equal ones the rows, and of three the last is cut off."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, 12), nn.Tanh(), nn.Linear(12, 4))
    b = batch_of(Model(net.double(), mean=[0.4] * 3, std=[0.3] * 3, size=(2, 3), precision="float64"),
                 torch.rand(1, 3, 2, 3, generator=torch.Generator().manual_seed(0)))
    fill = b.model.preprocessing.constant(0.5).to(b.inputs)

    def v(shown: frozenset[tuple[int, int]]) -> float:
        mask = torch.zeros(2, 3, dtype=torch.bool)
        for pixel in shown:
            mask[pixel] = True
        return float(b.model(torch.where(mask, b.inputs[0], fill)[None])[0, CLASS])

    def owen(part: list[tuple[int, int]], context: frozenset[tuple[int, int]]) -> dict[tuple[int, int], float]:
        if len(part) == 1:
            return {part[0]: v(context | set(part)) - v(context)}
        rows, columns = sorted({p[0] for p in part}), sorted({p[1] for p in part})
        axis, along = (0, rows) if len(rows) >= len(columns) else (1, columns)
        first = set(along[: (len(along) + 1) // 2])
        halves = [[p for p in part if p[axis] in first], [p for p in part if p[axis] not in first]]
        found: dict[tuple[int, int], float] = {}
        for mine, other in (halves, halves[::-1]):
            off, on = owen(mine, context), owen(mine, context | set(other))
            found |= {p: (off[p] + on[p]) / 2 for p in mine}
        return found

    truth = torch.zeros(2, 3, dtype=torch.float64)
    for pixel, value in owen([(y, x) for y in range(2) for x in range(3)], frozenset()).items():
        truth[pixel] = value
    before = b.model.cost.forwards
    analyzer = ShapPartition(evaluations=1000, baseline="grey")
    assert_close(mapped(analyzer, b, f"class:{CLASS}")[0], truth, rtol=0, atol=1e-12)
    assert b.model.cost.forwards - before < analyzer.passes(b.model).forwards, "all pixels are apart"


@pytest.mark.parametrize("value", VALUES)
def test_partition_adds_up_and_tells_the_score_with_nothing_shown(value: str) -> None:
    b = batch()
    told = panels(ShapPartition(evaluations=60, value=value, baseline="black"), b)
    ends = [float(VALUES[value](b.model(x))[0, CLASS]) for x in (baseline(b, "black", "test"), b.inputs)]
    none, gap = told["none"], told["efficiency_gap"]
    assert isinstance(none, Number)
    assert isinstance(gap, Number)
    assert none.value == pytest.approx(ends[0], abs=1e-10)
    assert gap.value == pytest.approx(0, abs=1e-10)
    found = mapped(ShapPartition(evaluations=60, value=value, baseline="black"), b, f"class:{CLASS}")
    assert float(found.sum()) == pytest.approx(ends[1] - ends[0], abs=1e-10)


def test_partition_of_a_target_does_not_depend_on_which_others_are_asked() -> None:
    b = batch()
    analyzer = ShapPartition(evaluations=40)
    targets = [b.bind(Target(text)) for text in ("class:0", "class:3")]
    for target, maps in zip(targets, analyzer.maps_for(b, targets), strict=True):
        assert_close(maps.values, analyzer.maps(b, target).values, rtol=0, atol=0)


# --- gradient ---
@pytest.mark.parametrize("source", ["black", "white", "blur", "pictures"])
def test_gradient_of_a_linear_network_is_weight_times_difference(source: str, tmp_path: Path) -> None:
    net = linear_net()
    b = batch(net, size=6)
    if source == "pictures":
        from PIL import Image as Pil
        Pil.fromarray(np.random.default_rng(1).integers(0, 255, (6, 6, 3), dtype=np.uint8)).save(tmp_path / "one.png")
        other = b.model.preprocessing(load_images(str(tmp_path))[0]).input.double()
    else:
        other = baseline(b, source, "test")[0]
    which = str(tmp_path) if source == "pictures" else source
    found = mapped(ShapGradient(baselines=which, background=3, samples=7), b, f"class:{CLASS}")[0]
    truth = net[1].weight[CLASS].detach().view(3, 6, 6) * (b.inputs[0] - other)
    close_to_scale(found, truth.sum(0), 1e-6)


def test_gradient_is_what_shap_gives_for_the_plain_network_with_the_same_seed() -> None:
    torch.manual_seed(3)
    net = Residual().eval()
    b = batch(net, size=12)
    found = mapped(ShapGradient(background=6, samples=20), b, f"class:{CLASS}")[0]
    generator = b.generator(0, "shap_gradient")
    one = drawn_from(b, 0, "colours", "test")
    background = torch.stack([one(generator) for _ in range(6)])
    seed = int(torch.randint(2**31, (), generator=generator))
    with quiet_shap() as shap:
        explainer = shap.GradientExplainer(net.float(), background)
        theirs = explainer.shap_values(b.inputs.float(), nsamples=20, rseed=seed)[0, ..., CLASS]
    close_to_scale(found, torch.from_numpy(theirs).sum(0), 1e-4)


def test_gradient_adds_up_on_average_in_blocks_of_their_own() -> None:
    """A quadratic net: the sum of (x - b) dS/dx at b + a (x - b) has the rise as its mean, and a known spread."""

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = linear_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x).square()

    net = Square()
    b = batch(net, size=6)
    black = baseline(b, "black", "test")
    rise = float(b.model(b.inputs)[0, CLASS] - b.model(black)[0, CLASS])
    step = float(net.head[1].weight[CLASS].detach() @ (b.inputs - black).flatten())
    for n in (60, 3000):
        total = float(mapped(ShapGradient(baselines="black", samples=n), b, f"class:{CLASS}").sum())
        spread = 2 * step**2 * (1 / 12 / n) ** 0.5
        assert 0 < abs(total - rise) < 3 * spread
    one = [float(mapped(ShapGradient(baselines="black", samples=n), b, f"class:{CLASS}").sum()) for n in (25, 50)]
    assert 2 * one[1] - one[0] != pytest.approx(one[0], rel=1e-3), "the second block has places of its own"


def test_gradient_costs_its_samples_and_its_background_nothing() -> None:
    b = batch()
    b.output()
    b.model.cost.forwards = 0
    analyzer = ShapGradient(samples=30, background=40)
    mapped(analyzer, b)
    assert (b.model.cost.forwards, b.model.cost.backwards) == (30, 30)
    assert (analyzer.passes(b.model).forwards, analyzer.passes(b.model).backwards) == (30, 30)


def test_gradient_of_a_contrast_is_the_difference_for_the_same_draws() -> None:
    b = batch()
    analyzer = ShapGradient(samples=8)
    one, two, both = (mapped(analyzer, b, text) for text in ("class:0", "class:2", "class:0 - class:2"))
    close_to_scale(one - two, both, 1e-6)


def test_gradient_says_where_none_reaches_the_picture_and_which_baselines_there_are() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = conv_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.detach())

    with pytest.raises(XaiError, match="no gradient reaches"):
        mapped(ShapGradient(samples=4), batch(Cut()))
    with pytest.raises(XaiError, match="nowhere"):
        mapped(ShapGradient(baselines="nowhere/at/all"), batch())
    unknown = next(Model(conv_net(), size=12).prepare(load_images(torch.from_numpy(pictures(1, 12)), normalised=True)))
    with pytest.raises(XaiError, match="no mean and std"):
        mapped(ShapGradient(samples=4), unknown)


# --- all three ---
@pytest.mark.parametrize("analyzer", EVERY, **by_name)
@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels(analyzer: Attribution, channels: int) -> None:
    model = made(conv_net(channels=channels), size=12, channels=channels)
    found = mapped(analyzer, batch_of(model, torch.from_numpy(pictures(2, 12, channels))))
    assert found.shape == (2, 12, 12)
    assert bool((found.flatten(1).std(1) > 0).all())


@pytest.mark.parametrize("analyzer", EVERY, **by_name)
def test_a_regression_head_and_a_callable_are_explained_in_their_own_score(analyzer: Attribution) -> None:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    b = batch(nn.Sequential(features, nn.Linear(16, 1)))
    one = mapped(analyzer, b, "class:0")
    twice = analyzer.maps(b, b.bind(Target("twice", function=lambda out: 2 * out[:, 0]))).values
    close_to_scale(twice, 2 * one, 1e-6)


@pytest.mark.parametrize("analyzer", FORWARD_ONLY, **by_name)
def test_a_model_that_can_only_be_run_has_the_same_map(analyzer: Attribution) -> None:
    net = conv_net().double().eval()
    bare = Model(forward=lambda x: net(x).detach(), mean=[0.4] * 3, std=[0.3] * 3, size=12, precision="float64")
    assert bare.capabilities == {"forward"}
    close_to_scale(mapped(analyzer, batch_of(bare, pictures(1, 12))), mapped(analyzer, batch()), 1e-6)


@pytest.mark.parametrize("analyzer", FORWARD_ONLY, **by_name)
def test_a_class_map_is_explained_over_a_region(analyzer: Attribution) -> None:
    torch.manual_seed(0)
    b = batch(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)))
    found = mapped(analyzer, b, "mask:1")
    assert float(found.std()) > 0


@pytest.mark.parametrize("analyzer", EVERY, **by_name)
def test_nobody_else_s_random_numbers_are_drawn_moved_or_listened_to(
    analyzer: Attribution, capfd: pytest.CaptureFixture[str]
) -> None:
    b = batch(seed=4)
    first = mapped(analyzer, b)
    np.random.seed(123)
    random.seed(5)
    torch.manual_seed(6)
    before = (repr(np.random.get_state()), random.getstate(), torch.get_rng_state().tolist())
    assert torch.equal(mapped(analyzer, b), first)
    assert (repr(np.random.get_state()), random.getstate(), torch.get_rng_state().tolist()) == before
    assert capfd.readouterr() == ("", "")


def test_numpy_s_generator_is_put_back_where_a_pass_fails() -> None:
    class Broken(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Broken.calls += 1
            if Broken.calls > 6:
                raise RuntimeError("no more")
            return x.mean((2, 3))

    for analyzer in (ShapPartition(evaluations=40), ShapGradient(samples=60)):
        Broken.calls = 0
        model = Model(forward=Broken().forward, mean=[0.4] * 3, std=[0.3] * 3, size=12,
                      capabilities=("forward", "gradients"))
        b = batch_of(model, pictures(1, 12), chunk=2)
        np.random.seed(3)
        before = repr(np.random.get_state())
        with pytest.raises(XaiError, match="no more"):
            mapped(analyzer, b)
        assert repr(np.random.get_state()) == before


def test_gradient_leaves_no_hook_and_no_flag_on_the_network() -> None:
    net = Residual().train()
    net.stem.weight.requires_grad_(False)
    flags = [(m.training, len(m._forward_hooks), len(m._backward_hooks)) for m in net.modules()]
    wants = [(p.requires_grad, p.grad) for p in net.parameters()]
    mapped(ShapGradient(samples=4), batch(net))
    assert [(m.training, len(m._forward_hooks), len(m._backward_hooks)) for m in net.modules()] == flags
    assert [(p.requires_grad, p.grad) for p in net.parameters()] == wants
