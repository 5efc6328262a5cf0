"""Verdicts on hand-made maps: what passes, what fails, with which number, and a sentence that is true."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor
from torch.testing import assert_close

from xai import health
from xai.result import Verdict

NAN, INF = float("nan"), float("inf")
HILL = torch.tensor([[0.0, 1.0, 0.0], [1.0, 4.0, 1.0], [0.0, 1.0, 0.0]])
VALLEY = torch.tensor([[3.0, 0.0, -1.0], [0.5, 0.0, 2.0], [-1.0, 1.0, 0.0]])


def test_the_thresholds_are_those_of_the_calibration() -> None:
    """examples/calibrate_evidence.py measured them; rounded to two places."""
    table = (Path(__file__).parent.parent / "examples/tables/evidence.md").read_text()
    found = dict(re.findall(r"([a-z][a-z -]+) (\d\.\d\d)", table.split("Thresholds: ")[1].split(". Each")[0]))
    assert {k.strip(): float(v) for k, v in found.items()} == {
        "class-sensitive": health.SAME, "weight-dependent": health.WEIGHTS, "faithful beyond random": health.FAITHFUL,
        "stable": health.STABLE}


def value(verdict: Verdict) -> float:
    assert verdict.value is not None
    return verdict.value


def plain(verdict: Verdict) -> bool:
    """One sentence with a capital and a stop, advice exactly where it failed, no jargon of the code."""
    text = verdict.sentence
    assert text[0].isupper()
    assert text.endswith(".")
    assert bool(verdict.advice) == (not verdict.passed)
    assert not any(word in text for word in ("nan", "NaN", "None", "tensor", " inf", "_"))
    assert verdict.picture == "p"
    return True


def test_a_good_map_passes_everything() -> None:
    found = [health.finite(HILL, "p"), health.varied(HILL, "p"), health.class_sensitive(HILL, VALLEY, "dog", "p")]
    assert [v.passed for v in found] == [True] * 3
    assert all(map(plain, found))
    assert [v.name for v in found] == ["finite", "not constant", "class-sensitive"]
    assert [value(v) for v in found[:2]] == [1.0, 1.0]
    assert health.shown(HILL, "relu", "p") is None


@pytest.mark.parametrize(
    ("bad", "share", "said"),
    [([NAN], 8 / 9, "Not finite numbers: 1 of the map's 9 values."), ([NAN, INF, -INF], 6 / 9, "3 of the map's 9"),
     ([NAN] * 9, 0.0, "9 of the map's 9 values.")],
)  # fmt: skip
def test_a_map_with_values_that_are_no_numbers_fails(bad: list[float], share: float, said: str) -> None:
    values = HILL.flatten().clone()
    values[: len(bad)] = torch.tensor(bad)
    verdict = health.finite(values.reshape(3, 3), "p")
    assert not verdict.passed
    assert said in verdict.sentence
    assert plain(verdict)
    assert_close(value(verdict), share)


def test_one_bad_value_of_a_large_map_is_not_rounded_away() -> None:
    values = torch.zeros(1000, 1000)
    values[7, 7] = NAN
    verdict = health.finite(values, "p")
    assert not verdict.passed
    assert "1 of the map's 1000000 values" in verdict.sentence


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (torch.zeros(3, 3), "The map is zero everywhere: it says nothing about where."),
        (torch.full((3, 3), -2.5), "The map is the same everywhere: it says nothing about where."),
        (torch.full((3, 3), 1e-30), "The map is the same everywhere: it says nothing about where."),
        (1000 + torch.arange(9).reshape(3, 3) * 1e-5, "The map is the same everywhere"),
        (torch.ones(1, 1), "The map is the same everywhere"),
        (torch.full((3, 3), NAN), "The map is finite nowhere"),
        (torch.tensor([[NAN, 2.0], [2.0, INF]]), "The map is the same everywhere"),
        (torch.tensor([[NAN, 0.0], [0.0, INF]]), "The map is zero everywhere"),
    ],
    ids=["zero", "constant", "tiny constant", "rounding", "one cell", "no number", "constant but for NaN",
         "zero but for NaN"],
)  # fmt: skip
def test_a_flat_map_fails_and_is_called_what_it_is(values: Tensor, said: str) -> None:
    verdict = health.varied(values, "p")
    assert not verdict.passed
    assert verdict.sentence.startswith(said)
    assert value(verdict) <= 1e-6


@pytest.mark.parametrize("scale", [1e-30, 1.0, -1.0, 1e30])
def test_the_spread_does_not_depend_on_the_scale(scale: float) -> None:
    verdict = health.varied(HILL * scale, "p")
    assert verdict.passed
    assert plain(verdict)
    assert_close(value(verdict), 1.0)


@pytest.mark.parametrize("values", [-HILL - 1, -HILL, torch.full((2, 2), -3.0)], ids=["negative", "with zeros", "flat"])
def test_a_relu_that_hides_the_whole_map_is_told(values: Tensor) -> None:
    verdict = health.shown(values, "relu", "p")
    assert verdict is not None
    assert not verdict.passed
    assert verdict.sentence.startswith("No value is positive, so the method's ReLU leaves nothing to see")
    assert plain(verdict)
    assert_close(value(verdict), values.max().item())


@pytest.mark.parametrize("view", ["signed", "abs"])
def test_a_negative_map_is_visible_without_a_relu(view: str) -> None:
    assert health.shown(-HILL - 1, view, "p") is None


@pytest.mark.parametrize(
    "values",
    [HILL - 3, torch.zeros(2, 2), torch.zeros(0, 0), torch.full((2, 2), NAN), torch.tensor([[NAN, 1.0]]),
     torch.tensor([[-INF, 1e-6]])],
    ids=["one positive value", "zero", "empty", "no number", "positive beside NaN", "positive beside -inf"],
)  # fmt: skip
def test_a_relu_is_not_blamed_for_what_it_does_not_hide(values: Tensor) -> None:
    assert health.shown(values, "relu", "p") is None


def test_a_relu_over_negative_values_and_one_that_is_no_number_hides_all() -> None:
    verdict = health.shown(torch.tensor([[NAN, -1.0], [-2.0, -INF]]), "relu", "p")
    assert verdict is not None
    assert value(verdict) == -1.0


@pytest.mark.parametrize("gain", [1.0, 0.1, 1e6])
@pytest.mark.parametrize("offset", [0.0, 7.0])
def test_the_same_map_for_another_class_fails_whatever_its_scale_and_offset(gain: float, offset: float) -> None:
    verdict = health.class_sensitive(HILL, HILL * gain + offset, "dog", "p")
    assert not verdict.passed
    said = "The map for dog is the same map (correlation 1.000): it does not tell the classes apart."
    assert verdict.sentence == said
    assert plain(verdict)
    assert_close(value(verdict), 1.0, rtol=1e-6, atol=0)
    assert verdict.threshold == health.SAME


def test_an_antisymmetric_map_is_the_same_places_with_other_signs() -> None:
    """Where the signs are shown it tells two classes apart; where the absolute value is, it does not."""
    assert health.class_sensitive(VALLEY, -VALLEY, "dog", "p").passed
    verdict = health.class_sensitive(VALLEY, -VALLEY, "dog", "p", "abs")
    assert not verdict.passed
    assert "is the same map with its signs turned (correlation -1.000)" in verdict.sentence
    assert plain(verdict)
    assert_close(value(verdict), -1.0, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "pair",
    [(HILL, torch.zeros(3, 3)), (torch.ones(3, 3), HILL), (torch.zeros(3, 3), torch.zeros(3, 3)),
     (HILL, torch.full((3, 3), NAN)), (torch.where(HILL == 4, INF, HILL), VALLEY)],
    ids=["other flat", "flat", "both flat", "other no number", "infinite"],
)  # fmt: skip
def test_maps_that_cannot_be_compared_fail_without_a_made_up_number(pair: tuple[Tensor, Tensor]) -> None:
    verdict = health.class_sensitive(*pair, "dog", "p")
    assert not verdict.passed
    assert verdict.value is None
    assert verdict.sentence == "One of this map and the map for dog is flat or not finite: they cannot be compared."
    assert plain(verdict)


def test_the_threshold_divides_alike_from_different() -> None:
    """Correlation rises with the share of the same map; just below the threshold passes, just above fails."""
    torch.manual_seed(0)
    base, other = torch.randn(64, 64, dtype=torch.float64), torch.randn(64, 64, dtype=torch.float64)
    base, other = base - base.mean(), other - other.mean()
    other = other - (other * base).sum() / (base * base).sum() * base  # no correlation at all
    other = other / other.norm() * base.norm()
    for correlation, passed in ((0.0, True), (0.5, True), (0.809, True), (0.811, False), (0.9995, False)):
        mixed = correlation * base + math.sqrt(1 - correlation**2) * other
        verdict = health.class_sensitive(base, mixed, "dog", "p")
        assert_close(value(verdict), correlation, rtol=0, atol=1e-9)
        assert verdict.passed is passed
        if not passed:
            near = "" if correlation > health.ALIKE else "much "
            assert verdict.sentence.startswith(f"The map for dog is {near}the same map (correlation {correlation:.3f}")
        if passed:
            assert verdict.sentence == ("The map changes with the class: its correlation with the map for dog is "
                                        f"{value(verdict):.2f}.")  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(arrays.arrays("float32", st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(width=32)))
def test_no_map_breaks_a_verdict(values: object) -> None:
    tensor = torch.as_tensor(values)
    known = tensor[torch.isfinite(tensor)]
    assert health.finite(tensor, "p").passed == (known.numel() == tensor.numel())
    varied = health.varied(tensor, "p")
    assert not math.isnan(value(varied))
    if not known.numel() or known.min() == known.max():
        assert not varied.passed
    hidden = health.shown(tensor, "relu", "p")
    assert (hidden is not None) == bool(known.numel() and known.max() <= 0 and known.min() < 0)
    same = health.class_sensitive(tensor, tensor, "dog", "p")
    assert not same.passed
    assert same.value is None or abs(same.value) > health.SAME


@pytest.mark.parametrize(("value_", "passed"), [(0.64, True), (0.66, False), (-0.9, True), (1.0, False)])
def test_a_map_that_outlives_its_last_layer_fails(value_: float, passed: bool) -> None:
    verdict = health.weight_dependent(value_, "p", "Checked with 3 samples.")
    assert verdict.passed is passed
    assert verdict.sentence.endswith("Checked with 3 samples.")
    assert f"{value_:.2f}" in verdict.sentence
    assert plain(verdict)


def test_a_check_that_could_not_be_made_is_neither_good_nor_bad() -> None:
    found = (health.weight_dependent(NAN, "p"), health.stable([NAN], 0.03, "p"), health.unchecked("x", "why", "p"))
    for verdict in found:
        assert (verdict.passed, verdict.value, verdict.threshold) == (None, None, None)
        assert verdict.sentence.startswith("Not checked: ")


@pytest.mark.parametrize(("value_", "rolled", "passed", "bar"), [
    (0.5, [], True, health.FAITHFUL), (0.4, [], False, health.FAITHFUL), (0.4, [0.1, 0.3], True, 0.3),
    (0.2, [0.1, 0.3], False, 0.3), (NAN, [], False, health.FAITHFUL)])  # fmt: skip
def test_a_faithful_map_beats_what_knows_nothing(value_: float, rolled: list[float], passed: bool, bar: float) -> None:
    verdict = health.faithful(value_, rolled, "p")
    assert verdict.passed is passed
    assert verdict.threshold == bar
    assert (f"{len(rolled)} copies" in verdict.sentence) == bool(rolled)


def test_a_stable_map_is_judged_by_the_mean_of_its_draws() -> None:
    assert health.stable([0.9, 0.1, NAN], 0.03, "p").value == pytest.approx(0.5)
    assert health.stable([0.5, 0.3], 0.03, "p").passed is False
    assert health.stable([0.5, 0.5], 0.03, "p").passed is True
