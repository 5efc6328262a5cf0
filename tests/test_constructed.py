"""Networks with a known answer: what each method gets right there, and what it is known to get wrong, both asserted."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from analyzers.attribution.occlusion import Occlusion
from xai import health
from xai.constructed import SIDE, A, Answer, B, Known, answers, known, methods, model

CASES = {case.name: case for case in known()}
METHODS = {method.name(): method for method in methods()}
TABLE = Path(__file__).parent.parent / "examples/tables/constructed.md"
GRADIENTS = ("saliency", "input_x_gradient", "smoothgrad")
COMPLETE = ("integrated_gradients", "deeplift", "expected_gradients", "shap_gradient")


@cache
def found(case: str) -> dict[str, Answer]:
    """What every method makes of one network."""
    return dict(zip(METHODS, answers(list(METHODS.values()), CASES[case]), strict=True))


def outcomes(case: str, *names: str) -> set[str]:
    return {found(case)[name].judged.outcome for name in names}


def values(case: str, name: str) -> Tensor:
    answer = found(case)[name]
    assert answer.values is not None
    return answer.values.double()


def logit(case: Known, pixels: Tensor) -> float:
    """Of the class that is explained, through the plain network."""
    return float(case.build().eval()(pixels[None])[0, case.target])


# --- the cases themselves ---
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_answer_adds_up_to_what_the_logit_gains_over_black(case: Known) -> None:
    pixels = torch.from_numpy(case.pixels)
    gained = logit(case, pixels) - logit(case, torch.zeros_like(pixels))
    assert float(case.truth.sum()) == pytest.approx(gained, abs=1e-4)
    if case.name != "constant":
        assert float(case.shares.sum()) / 64 == pytest.approx(gained, abs=1e-4) or float(
            case.shares.sum()) == pytest.approx(64 * gained, rel=1e-3)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_logit_reads_no_pixel_that_it_is_said_not_to_read(case: Known) -> None:
    pixels = torch.from_numpy(case.pixels)
    noise = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    other = torch.where(case.read, pixels, noise)
    assert logit(case, other) == pytest.approx(logit(case, pixels), abs=1e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_shapley_values_are_those_of_all_orders(case: Known) -> None:
    """Brute force over the blocks that the logit reads; hidden ones are black."""
    pixels = torch.from_numpy(case.pixels)
    blocks = [(slice(y, y + 8), slice(x, x + 8)) for y, x in product(range(0, SIDE, 8), repeat=2)]
    players = [b for b in blocks if bool(case.read[b].any())]
    scores = {}
    for shown in product((0, 1), repeat=len(players)):
        picture = torch.zeros_like(pixels)
        for on, block in zip(shown, players, strict=True):
            if on:
                picture[(slice(None), *block)] = pixels[(slice(None), *block)]
        scores[shown] = logit(case, picture)
    for i, block in enumerate(players):
        value = 0.0
        for shown, score in scores.items():
            if shown[i]:
                size = sum(shown) - 1
                without = (*shown[:i], 0, *shown[i + 1 :])
                weight = 1.0
                for k in range(1, size + 1):
                    weight *= k / (len(players) - size - 1 + k)
                value += weight / (len(players)) * (score - scores[without])
        assert float(case.shares[block].mean()) == pytest.approx(value, abs=1e-4)


# --- every method on every case ---
def test_the_table_is_what_the_methods_do() -> None:
    """Failures too: a method that gets better, or worse, changes the table, which examples/constructed.py writes."""
    head, _, *rows = [line.strip("| ").split(" | ") for line in TABLE.read_text().split("\n\n")[0].splitlines()]
    assert head[1:] == list(CASES)
    written = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
    done = {name: {case: found(case)[name].judged.outcome for case in CASES} for name in METHODS}
    assert written == done


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_cannot_run_says_why_and_the_others_leave_unread_pixels_alone(name: str) -> None:
    blurs = name in ("eigencam", "rise", "lime", "hsic", "sobol", "shap_partition", "meaningful_perturbation",
                     "extremal_perturbation", "smoothgrad", "vargrad", "fullgrad")  # they look at more than pixels
    for case in CASES:
        answer = found(case)[name]
        if answer.judged.outcome == "refused":
            assert " must be " in answer.judged.said
        elif not blurs and answer.judged.outcome in ("exact", "found"):
            assert answer.judged.leak <= 0.26 if case == "one cell" else answer.judged.leak <= 1e-5


@pytest.mark.parametrize("name", METHODS)
def test_on_a_constant_logit_every_map_is_flat_or_does_not_ask_about_the_class(name: str) -> None:
    answer = found("constant")[name]
    if answer.judged.outcome == "flat":
        assert any(v.name == "not constant" and v.passed is False for v in answer.verdicts)
    else:
        assert name in ("eigencam", "attention_gradient", "attention_rollout", "finercam")


# --- what is known of each ---
def test_on_linear_networks_the_gradient_times_input_is_exact_and_so_is_all_that_reduces_to_it() -> None:
    for case in ("region", "contrast", "one cell"):
        assert outcomes(case, "input_x_gradient", "lrp", *COMPLETE) == {"exact"}


def test_gradients_vanish_under_saturation_where_the_way_from_black_does_not() -> None:
    assert outcomes("saturation", *GRADIENTS, "gradcam", "hirescam", "lrp", "guided_backprop") == {"flat"}
    assert outcomes("saturation", *COMPLETE) <= {"exact", "found"}
    assert outcomes("saturation", "occlusion", "shap_kernel") == {"exact"}
    assert float(values("saturation", "integrated_gradients").sum()) == pytest.approx(1.0, abs=0.01)


def test_either_is_enough_and_no_gradient_sees_it() -> None:
    assert outcomes("or", *GRADIENTS, "gradcam", "layercam") == {"flat"}
    assert outcomes("or", "deeplift", "shap_kernel") == {"exact"}
    halves = values("or", "shap_kernel")
    assert float(halves[A].mean()) == pytest.approx(float(halves[B].mean()), abs=1e-4)


def test_both_are_needed_and_the_gradient_overstates_them() -> None:
    gained = 0.6
    assert float(values("and", "input_x_gradient").sum()) == pytest.approx(1.6, abs=1e-3)
    for name in ("integrated_gradients", "deeplift", "shap_kernel"):
        whole = values("and", name)
        total = float(whole.sum()) / (64 if name == "shap_kernel" else 1)
        assert total == pytest.approx(gained, abs=0.01)


def test_one_but_not_both_is_shared_fairly_by_shapley_values_alone() -> None:
    fair = values("xor", "shap_kernel")
    assert float(fair[A].mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(fair[B].mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(values("xor", "integrated_gradients")[B].sum()) == pytest.approx(-0.3, abs=0.01)


def test_guided_backpropagation_marks_what_is_taken_back_and_layercam_too() -> None:
    assert outcomes("cancellation", "guided_backprop", "layercam") == {"astray"}
    assert outcomes("cancellation", "saliency", "input_x_gradient", "hirescam", *COMPLETE) <= {"exact", "found"}
    guided = values("cancellation", "guided_backprop")
    assert float(guided[A].sum()) == pytest.approx(float(guided[B].sum()), rel=1e-3)


def test_guided_backpropagation_gives_two_classes_one_map_where_the_gradient_does_not() -> None:
    """What speaks for both is shared; what rules each out is negative, and guided backpropagation drops it."""
    case = CASES["ruled out"]
    swapped = Known(case.name, case.story, case.build, case.pixels, case.truth, case.shares, case.read, case.matters, 1)
    chosen = [METHODS["guided_backprop"], METHODS["input_x_gradient"]]
    first, second = (answers(chosen, one) for one in (case, swapped))
    guided, plain = ([one[k].values for one in (first, second)] for k in (0, 1))
    for pair in (guided, plain):
        assert all(value is not None for value in pair)
    assert health.correlation(*[v for v in guided if v is not None]) > health.SAME
    assert health.correlation(*[v for v in plain if v is not None]) < health.SAME


def test_a_steep_step_draws_the_gradient_and_not_the_way() -> None:
    assert outcomes("step", "saliency", "input_x_gradient", "lrp", "hirescam") == {"astray"}
    assert outcomes("step", *COMPLETE, "occlusion", "shap_kernel") <= {"exact", "found"}


def test_the_shortcut_is_found_and_the_object_is_not() -> None:
    assert outcomes("shortcut", "gradcam", "saliency", "guided_backprop", *COMPLETE) <= {"exact", "found"}
    assert outcomes("shortcut", "eigencam") == {"astray"}, "what stands out in the layer is the object"


def test_eigencam_gives_both_classes_the_same_map() -> None:
    case = CASES["contrast"]
    swapped = Known(case.name, case.story, case.build, case.pixels, case.truth, case.shares, case.read, case.matters, 1)
    one, two = (answers([METHODS["eigencam"]], each)[0].values for each in (case, swapped))
    assert one is not None
    assert two is not None
    assert torch.equal(one, two)


def test_pooled_gradients_lose_the_place_where_the_layer_is_read_place_by_place() -> None:
    """Grad-CAM averages the gradient over the places; HiResCAM does not."""
    for case in ("region", "and", "cancellation"):
        assert outcomes(case, "gradcam") == {"astray"}
        assert outcomes(case, "hirescam") == {"found"}


def test_a_patch_of_one_pixel_is_exact_where_the_network_is_linear_near_the_picture() -> None:
    small = Occlusion(window=1, stride=1, baseline="black")
    said = {name: answers([small], case)[0].judged.outcome for name, case in CASES.items()}
    exact = ("region", "contrast", "ruled out", "xor", "cancellation", "shortcut", "one cell")
    assert said == dict.fromkeys(exact, "exact") | {
        "and": "found", "or": "flat", "saturation": "flat", "step": "astray", "constant": "flat"}


def test_a_model_of_a_case_changes_no_number() -> None:
    case = CASES["region"]
    made = model(case)
    pixels = torch.from_numpy(case.pixels)
    assert float(made(pixels[None])[0, 0]) == pytest.approx(logit(case, pixels), abs=1e-6)
