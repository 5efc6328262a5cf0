"""What every metric shares: who is judged, the controls, intervals, verdicts, and maps that are none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import xai
from analyzers.attribution.gradcam import GradCAM
from analyzers.attribution.smoothgrad import SmoothGrad
from analyzers.evaluation.complexity import Complexity
from analyzers.evaluation.model_randomization import ModelRandomization
from analyzers.evaluation.pointing_game import PointingGame
from analyzers.evaluation.relevance_accuracy import RelevanceAccuracy
from reports.table import csv
from tests.gradient_nets import conv_net, made, pictures
from xai import catalog
from xai.analyzer import Maps, param
from xai.ask import Ask
from xai.attribution import Attribution
from xai.batch import Batch
from xai.benchmark import benchmark, markdown
from xai.controls import CONTROLS, Given, Random, methods_of, named
from xai.errors import XaiError
from xai.images import Images, load_images
from xai.metric import GROUPS, Case, Metric, Score, Scored, as_stored, case_of, sound
from xai.model import Model
from xai.panels import Curve, Table, View
from xai.plan import plan
from xai.result import Result, Verdict
from xai.statistics import interval, wilson
from xai.subject import Subject
from xai.targets import Bound, Target
from xai.zoo.loading import load


@pytest.fixture(scope="module")
def planted() -> Model:
    return load("xai:planted")


def net() -> Model:
    return made(conv_net(), precision="float32")


def table(result: Result, key: str) -> list[dict[str, Any]]:
    (panel,) = [p for p in result.panels if isinstance(p, Table) and p.key == key]
    return [dict(zip((column.name for column in panel.columns), row, strict=True)) for row in panel.rows]


def told(result: Result, name: str) -> list[Verdict]:
    return [v for v in result.verdicts if v.name == name]


# --- who is judged ---
def test_methods_are_named_with_their_parameters_and_come_back_as_they_were() -> None:
    text = "gradcam,smoothgrad(samples=20, noise=0.3),random,maps:some/folder"
    found = methods_of(text)
    assert found == (GradCAM(), SmoothGrad(samples=20, noise=0.3), Random(), Given("some/folder"))
    again = ",".join(map(named, found))
    assert again == "gradcam,smoothgrad(samples=20, noise=0.3),random,maps:some/folder"
    assert methods_of(again) == found
    assert methods_of(GradCAM()) == methods_of([GradCAM()]) == (GradCAM(),)
    assert Complexity(of=SmoothGrad(samples=3)).parameters()["of"] == "smoothgrad(samples=3)"  # type: ignore[arg-type]  # a method will do


@pytest.mark.parametrize(("text", "said"), [
    ("gradcom", "Did you mean gradcam"), ("gradcam(", "Check its brackets"),
    ("smoothgrad(samples)", "of the form key=value"), ("smoothgrad(sample=3)", "smoothgrad.sample=3"),
    ("smoothgrad(samples=x)", "smoothgrad.samples must be of type int"),
    ("complexity", "what is judged must be an attribution"), ("", "what is judged must be an attribution"),
    ("gradcam(layer=", "Check its brackets")])  # fmt: skip
def test_what_is_no_method_gets_a_sentence(text: str, said: str) -> None:
    with pytest.raises(XaiError, match=r".+ must .+; got ") as problem:
        methods_of(text)
    assert said.lower() in str(problem.value).lower()


def test_a_finished_map_cannot_be_made_again() -> None:
    with pytest.raises(XaiError, match="a method that it can run again; got finished maps"):
        ModelRandomization(of="maps:here").judged()


def test_finished_maps_are_judged_as_the_method_that_made_them(tmp_path: Path) -> None:
    model, images = net(), load_images(list(pictures(3)))
    explained = xai.explain(model, images, "gradcam", out=tmp_path / "maps", save=("npy",), evidence="off").result
    given_, own = (Complexity(of=of)(Subject((model,), images)) for of in (f"maps:{tmp_path / 'maps'}", "gradcam"))
    raw = Complexity(of="hirescam")(Subject((model,), images))  # another method scores otherwise
    assert len(explained.images) == 3
    positive = all(float(p.values.min()) >= 0 for p in explained.panels if p.key == "map")  # type: ignore[union-attr]  # maps
    scores = [[row["mean"] for row in table(one, "scores")][:3] for one in (given_, own, raw)]
    if positive:
        assert_close(torch.tensor(scores[0]), torch.tensor(scores[1]))
    assert scores[1] != scores[2]
    assert len(table(given_, "scores")) == len(table(own, "scores"))


@pytest.mark.parametrize(("write", "said"), [
    (None, "none called"), (lambda p: p.write_bytes(b"no"), "a readable .npy file"),
    (lambda p: np.save(p, np.zeros((3, 6, 6))), "numbers \\(h, w\\)"),
    (lambda p: np.save(p, np.zeros((6, 2))), "numbers"),
    (lambda p: np.save(p, np.array([["a"] * 6] * 6)), "numbers"),
    (lambda p: np.save(p, np.array([[None] * 6] * 6), allow_pickle=True), "a readable .npy file")])  # fmt: skip
def test_a_finished_map_that_is_none_gets_a_sentence(write: Any, said: str, tmp_path: Path) -> None:
    if write is not None:
        write(tmp_path / "picture.npy")
    with pytest.raises(XaiError, match=said):
        Complexity(of=f"maps:{tmp_path}")(Subject((net(),), load_images([pictures(1)[0]], names=["picture.png"])))


# --- maps as metrics see them ---
@dataclass(frozen=True)
class Fixed(Attribution):
    """Fixed: maps that are given."""

    needs: ClassVar[frozenset[str]] = frozenset({"forward", "images"})
    values: Any = param(None, "maps")  # noqa: RUF009  # as every analyzer writes its fields

    def maps(self, batch: Batch, target: Bound) -> Maps:
        return Maps(self.values)


@dataclass(frozen=True)
class Top(Metric):
    """Top: the largest value."""

    scores: ClassVar[dict[str, Score]] = {"top": Score("the largest value", "higher"), "all": Score("of all")}
    of: Any = param("gradcam", "what is judged")  # noqa: RUF009  # as every analyzer writes its fields

    def score(self, case: Case) -> Scored:
        top = case.shown.flatten(1).amax(1).double()
        return Scored({"top": top}, {"tops": top[:, None]})

    def pooled(self, traces: dict[str, torch.Tensor]) -> dict[str, float]:
        return {"all": float(traces["tops"].max())}


def judged(values: torch.Tensor, count: int = 2) -> Result:
    return Top(of=Fixed(values))(Subject((net(),), load_images(list(pictures(count)))))


def test_a_map_is_scored_as_a_record_stores_it() -> None:
    raw = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0)) * 1e-9
    stored = as_stored(raw)
    top = raw.abs().amax((1, 2), keepdim=True)
    assert_close(stored, (raw / top).half().float() * top, rtol=0, atol=0)
    assert_close(stored, raw, rtol=1e-3, atol=1e-12)
    assert_close(as_stored(stored), stored, rtol=0, atol=0)


@pytest.mark.parametrize("values", [
    torch.full((2, 6, 6), float("nan")), torch.zeros(2, 6, 6), torch.full((2, 6, 6), -1.0),
    torch.full((2, 6, 6), float("inf"))], ids=["nan", "zero", "flat", "infinite"])  # fmt: skip
def test_a_map_that_is_none_has_no_score_and_a_failing_verdict(values: torch.Tensor) -> None:
    result = judged(values)
    assert not sound(values).any()
    first = table(result, "scores")[0]
    assert (first["mean"], first["pictures"]) == (None, 0)
    (verdict,) = told(result, "scored")
    assert verdict.passed is False
    assert "0 of 2 pictures have a score; 2 maps are not finite or flat." in verdict.sentence


@pytest.mark.parametrize("shape", [(1, 6, 6), (2, 6), (2, 1, 6, 6), (2, 0, 6)])
def test_maps_of_the_wrong_size_get_a_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(XaiError, match=r"the maps of test_metric must be of shape \(2, h, w\)"):
        judged(torch.rand(shape))


def test_localisation_counts_a_map_that_is_none_as_a_miss(planted: Model) -> None:
    images = load_images("planted:2")
    result = RelevanceAccuracy(of=Fixed(torch.full((2, 8, 8), float("nan"))))(  # type: ignore[arg-type]  # a method will do
        Subject((planted,), images, (Target("label"),)))
    scores = {row["score"]: row for row in table(result, "scores") if row["method"].startswith("test_metric")}
    assert (scores["mass"]["mean"], scores["rank"]["mean"], scores["mass"]["pictures"]) == (0.0, 0.0, 2)
    assert told(result, "scored")[0].passed is False


def test_pictures_without_boxes_get_a_sentence() -> None:
    with pytest.raises(XaiError, match="of which boxes or masks are known; got none of them"):
        RelevanceAccuracy()(Subject((net(),), load_images(list(pictures(2)))))


# --- tables, controls, verdicts ---
def test_the_controls_stand_beside_and_the_verdict_follows_the_intervals(planted: Model) -> None:
    images = load_images("planted:24@5")
    result = RelevanceAccuracy(of="gradcam,random")(Subject((planted,), images, (Target("label"),)))
    rows = table(result, "scores")
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["gradcam", "random", "centre", "sobel"]
    against = [row for row in table(result, "against") if row["score"] == "mass"]
    assert {row["method"] for row in against} == {"gradcam"}
    for row in against:
        assert row["low"] <= row["difference"] <= row["high"]
        assert (row["better"] == "yes") == (row["low"] > 0)
    (verdict,) = told(result, "beats the controls")
    assert verdict.passed is all(row["better"] == "yes" for row in against)
    assert len(table(result, "by_picture")) == 24 * 4
    means = {(row["method"], row["score"]): row["mean"] for row in rows}
    for row in against:
        gap = means["gradcam", "mass"] - means[row["control"], "mass"]
        assert row["difference"] == pytest.approx(gap, abs=1e-12)


def test_a_score_of_the_set_is_bootstrapped_by_pictures() -> None:
    values = torch.arange(8 * 36, dtype=torch.float32).view(8, 6, 6)
    rows = {row["score"]: row for row in table(judged(values, 8), "scores") if row["method"].startswith("test_metric")}
    top = float(as_stored(values).max())
    assert rows["all"]["mean"] == rows["all"]["high"] == top
    assert rows["all"]["low"] < top
    assert rows["top"]["low"] < rows["top"]["mean"] < rows["top"]["high"]


def test_one_method_that_cannot_run_does_not_cost_the_others() -> None:
    bare = Model(forward=conv_net(), mean=[0.4] * 3, std=[0.3] * 3, size=6)
    result = Complexity(of="gradcam,occlusion")(Subject((bare,), load_images(list(pictures(2)))))
    assert {row["method"] for row in table(result, "scores")} == {"occlusion", "random", "centre", "sobel"}
    (note,) = [p for p in result.panels if p.key == "problem gradcam"]
    assert "gives gradients" in str(vars(note)["text"])
    with pytest.raises(XaiError, match="gives gradients"):
        Complexity(of="gradcam")(Subject((bare,), load_images(list(pictures(2)))))


def test_the_plan_names_the_price_of_a_metric() -> None:
    model = net()
    ask = Ask(models=(model,), images=(list(pictures(3)),), methods=("insertion_deletion",),
              settings={"steps": "5", "of": "saliency"})
    _, row = plan(ask).rows
    chosen = {"steps": "5", "of": "saliency"}
    result = xai.analyze("insertion_deletion", model, list(pictures(3)), settings=chosen).result
    assert (row.forwards + 3, row.backwards) == (result.cost.forwards, result.cost.backwards)


def test_localisation_explains_the_label_unless_told_otherwise(planted: Model) -> None:
    for target, said in ((None, "label"), ("top1", "top1")):
        result = xai.analyze("relevance_accuracy", planted, "planted:3", target=target).result
        assert result.target == said


def test_curves_are_means_with_their_bands() -> None:
    model = net()
    result = xai.analyze("insertion_deletion", model, list(pictures(4)), settings={"steps": "4"}).result
    curves = [p for p in result.panels if isinstance(p, Curve)]
    assert curves
    for curve in curves:
        assert curve.names == ("gradcam", "random", "centre", "sobel")
        assert curve.low is not None
        assert curve.high is not None
        assert bool(((curve.low <= curve.y) & (curve.y <= curve.high)).all())


# --- intervals ---
def test_wilson_is_the_root_of_its_equation() -> None:
    for hits, n in ((0, 10), (3, 10), (10, 10), (250, 500)):
        share = hits / n
        for end in wilson(share, n):
            assert (share - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / n, abs=1e-12)


def test_the_interval_of_a_mean_covers_it_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(150):
        low, high = interval(torch.from_numpy(rng.exponential(1.0, 60)), seed=trial, draws=600)
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / 150 <= 0.995


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30), st.integers(0, 5))
def test_an_interval_holds_the_mean_and_does_not_change(values: list[float], seed: int) -> None:
    known = torch.tensor(values, dtype=torch.float64)
    low, high = interval(known, seed, draws=200)
    assert low - 1e-6 <= float(known.max())
    assert high + 1e-6 >= float(known.min())
    assert low <= high
    assert interval(known, seed, draws=200) == (low, high)


def test_few_values_have_no_interval() -> None:
    assert all(np.isnan(end) for end in interval(torch.tensor([1.0])))
    assert interval(torch.tensor([2.0, 2.0, 2.0])) == (2.0, 2.0)


# --- the league table ---
def test_the_league_table_ranks_and_judges(planted: Model) -> None:
    images = load_images("planted:48@11")
    result = benchmark(planted, images, ("gradcam", "guided_backprop", "rise(samples=64)", "scorecam"), effort=64)
    rows = table(result, "league")
    energy = [float(row["energy pointing"].split()[0]) for row in rows]
    assert energy == sorted(energy, reverse=True)
    names = [row["method"] for row in rows]
    assert set(names) == {"gradcam", "guided_backprop", "rise(samples=64)", "random", "centre", "sobel"}
    left = next(p for p in result.panels if p.key == "left out")
    assert "scorecam: A map costs 97 forwards, more than 64" in str(vars(left)["text"])
    beats = {v.sentence.split()[0]: v.passed for v in told(result, "beats the blind")}
    assert beats["gradcam"] is True
    weights = {v.sentence.split()[0]: v.passed for v in told(result, "weight-dependent")}
    assert weights["guided_backprop"] is False
    assert weights["gradcam"] is True
    numbers = {(r["method"], r["score"]): r for r in table(result, "scores")}
    for control in CONTROLS:
        assert numbers[control.name(), "last_layer"]["mean"] == pytest.approx(1.0, abs=1e-9)
    alone = RelevanceAccuracy(of="gradcam")(Subject((planted,), images, (Target("label"),)))
    mass = next(row for row in table(alone, "scores") if row["method"] == "gradcam" and row["score"] == "rank")
    assert numbers["gradcam", "rank"]["mean"] == pytest.approx(mass["mean"], abs=1e-6)
    text = markdown(result)
    assert text.count("\n| ") == len(rows) + 1


def test_a_benchmark_without_evidence_gets_a_sentence() -> None:
    images = load_images(list(pictures(2)), labels=[0, 1])
    with pytest.raises(XaiError, match="ones with a mask or a box for the object; got none of them"):
        benchmark(net(), images, ("gradcam",))
    with pytest.raises(XaiError, match="an attribution; got complexity"):
        benchmark(net(), images, ("complexity",))


def test_every_metric_says_what_its_scores_mean() -> None:
    for name, entry in catalog.entries().items():
        cls = catalog.find(name)
        if entry.kind == "evaluation" and issubclass(cls, Metric):
            assert cls.scores, name
            assert cls.group in GROUPS
            assert all(len(one.says) > 10 and one.better in ("", "higher", "lower") for one in cls.scores.values())


def test_a_case_enlarges_what_the_view_shows() -> None:
    model = net()
    batch = next(model.prepare(Images.of(load_images(list(pictures(1))))))
    raw = torch.tensor([[[-1.0, 1.0], [0.5, float("nan")]]])
    case = case_of(Fixed(raw), batch, batch.bind(Target("top1")))
    assert case.shown.shape == (1, 6, 6)
    assert bool(torch.isfinite(case.shown).all())


# --- a map that shows nothing, methods that fail on the way, inputs of several sizes ---
@dataclass(frozen=True)
class Hidden(Fixed):
    """Hidden: maps of which the view shows nothing."""

    view: ClassVar[View] = "relu"

    @classmethod
    def name(cls) -> str:
        return "hidden"


def test_a_map_of_which_nothing_is_shown_scores_as_one_that_is_none(planted: Model) -> None:
    values = -torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.1
    subject = Subject((planted,), load_images("planted:3"), (Target("label"),))
    for metric in (RelevanceAccuracy, PointingGame):
        rows = {row["score"]: row for row in table(metric(of=Hidden(values))(subject), "scores")  # type: ignore[arg-type]  # a method will do
                if row["method"].startswith("hidden")}
        assert {rows[name]["mean"] for name in rows if name not in ("chance", "by_class")} == {0.0}
        assert rows["chance"]["mean"] > 0, "that is of the picture, not of the map"
    result = Top(of=Hidden(values))(subject)
    assert table(result, "scores")[0]["mean"] is None
    assert told(result, "scored")[0].passed is False


@dataclass(frozen=True)
class Late(Attribution):
    """Late: fails from the second batch on."""

    needs: ClassVar[frozenset[str]] = frozenset({"forward", "images"})
    alone: bool = False

    def maps(self, batch: Batch, target: Bound) -> Maps:
        if self.alone or "picture 0" not in [image.name for image in batch.images]:
            raise XaiError("the lamp must be lit; got none. Light it.")
        return Maps(batch.inputs.mean(1))

    @classmethod
    def name(cls) -> str:
        return "late"


def test_a_method_that_fails_on_the_way_is_out_and_the_others_stay() -> None:
    images = load_images(list(pictures(40)))
    result = Top(of=(Late(), GradCAM()))(Subject((net(),), images))
    assert {row["method"] for row in table(result, "scores")} == {"gradcam", "random", "centre", "sobel"}
    assert all(row["pictures"] == 40 for row in table(result, "scores"))
    assert any(p.key == "problem late" for p in result.panels)
    with pytest.raises(XaiError, match="the lamp must be lit"):
        Top(of=(Late(alone=True), Late()))(Subject((net(),), images))


def test_curves_of_inputs_of_several_sizes_are_drawn_together() -> None:
    model = Model(conv_net(), mean=[0.4] * 3, std=[0.3] * 3, size=6)
    generator = torch.Generator().manual_seed(0)
    images = load_images([torch.rand(3, side, side, generator=generator) for side in (12, 6)], normalised=True)
    result = xai.analyze("insertion_deletion", model, images, settings={"of": "saliency"}).result
    assert any(isinstance(p, Curve) for p in result.panels)


@pytest.mark.parametrize("of", ["saliency,random", "integrated_gradients(steps=3),occlusion"])
def test_the_plan_counts_no_method_twice_and_none_that_cannot_run(of: str) -> None:
    bare = Model(forward=conv_net(), mean=[0.4] * 3, std=[0.3] * 3, size=6)
    model = net() if "saliency" in of else bare
    metric = catalog.parse("insertion_deletion")
    subject = Subject((model,), load_images(list(pictures(3))))
    made_ = type(metric)(of=of, steps=4)  # type: ignore[call-arg]  # fields of that metric
    planned = made_.cost(subject)
    counted = made_(subject).cost
    assert (planned.forwards, planned.backwards) == (counted.forwards, counted.backwards)


def test_several_targets_at_once_get_a_sentence() -> None:
    with pytest.raises(XaiError, match="the target of complexity must be one; got 3 at once"):
        xai.analyze("complexity", net(), list(pictures(1)), target="top3")


def test_a_file_that_would_serve_two_pictures_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "cat.npy", np.random.default_rng(0).random((6, 6)))
    images = load_images(list(pictures(2)), names=["a/cat.png", "b/cat.jpg"])
    with pytest.raises(XaiError, match="cat.npy for 2 pictures of that name"):
        Complexity(of=f"maps:{tmp_path}")(Subject((net(),), images))


def test_the_scores_of_a_metric_are_what_csv_prints(tmp_path: Path) -> None:
    xai.analyze("complexity", net(), list(pictures(2)), out=tmp_path / "there")
    head, *lines = csv(tmp_path / "there").splitlines()
    assert head.startswith("picture,explained,method,")
    assert len(lines) == 2 * 4


def test_the_forwards_of_a_map_do_not_depend_on_who_comes_first(planted: Model) -> None:
    images = load_images("planted:8@2")
    found = []
    for names in (("saliency", "input_x_gradient"), ("input_x_gradient", "saliency")):
        rows = {row["method"]: row["forwards a map"] for row in table(benchmark(planted, images, names), "league")}
        found.append((rows["saliency"], rows["input_x_gradient"]))
    assert found[0] == found[1] == (3.0, 3.0)
