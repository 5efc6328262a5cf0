"""Is a map a map at all, and is it evidence: verdicts, each a sentence with a number, a threshold and advice.

The thresholds of the evidence card are what maps score that are known to be no evidence: examples/calibrate_evidence.py
measures them, examples/tables/evidence.md holds what it found, and a test compares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from xai.panels import View
from xai.panels import shown as seen_as
from xai.result import Verdict

ALIKE = 0.999  # above this correlation two maps are the same picture to the eye
SAME = 0.81  # correlation with the map for another class
WEIGHTS = 0.65  # correlation with the map of the network with its last layer drawn anew
FAITHFUL = 0.44  # preference, see `preference`
STABLE = 0.46  # correlation with the map of the picture with a little noise


def finite(values: Tensor, picture: str) -> Verdict:
    """The share of finite values of one raw map (h, w)."""
    count = int(torch.isfinite(values).sum())
    share, good = count / max(1, values.numel()), count == values.numel()
    said = ("Every value of the map is a finite number." if good else
            f"Not finite numbers: {values.numel() - count} of the map's {values.numel()} values.")
    return Verdict(name="finite", value=share, threshold=1.0, passed=good, sentence=said, picture=picture,
                   advice="" if good else "Try --precision float32 or float64, and check the input's range.")


def varied(values: Tensor, picture: str) -> Verdict:
    """The spread (max - min) of one raw map over its largest absolute value; a flat or zero map explains nothing."""
    known = values[torch.isfinite(values)]
    top = known.abs().max().item() if known.numel() else 0.0
    spread = (known.max() - known.min()).item() / top if top > 0 else 0.0
    good = spread > 1e-6
    what = "finite nowhere" if not known.numel() else "zero everywhere" if top == 0 else "the same everywhere"
    return Verdict(name="not constant", value=spread, threshold=1e-6, passed=good, picture=picture,
                   sentence=("The map differs from place to place." if good else
                             f"The map is {what}: it says nothing about where."),
                   advice=("" if good else
                           "Try another layer (--layer) or another target; `xai models info` lists the layers."))


def shown(values: Tensor, view: str, picture: str) -> Verdict | None:
    """A failing verdict where the stated view hides the whole map (a ReLU of an all-negative one), else None."""
    known = values[torch.isfinite(values)]
    if view != "relu" or not known.numel() or known.max() > 0 or known.abs().max() == 0:
        return None
    return Verdict(name="visible", value=known.max().item(), threshold=0.0, passed=False, picture=picture,
                   sentence="No value is positive, so the method's ReLU leaves nothing to see: "
                            "no place speaks for this class.",
                   advice="Read the raw map (--save npy), or explain another class or a contrast.")


def class_sensitive(values: Tensor, other: Tensor, name: str, picture: str, view: str = "signed",
                    how: str = "") -> Verdict:
    """The correlation of one raw map (h, w) with that for another class, called `name`; where the view is the absolute
    value, a mirrored map shows the same picture. how: a sentence to add, on how the two maps were made."""
    found = correlation(values, other)
    value = None if math.isnan(found) else found
    good = value is not None and (abs(value) if view == "abs" else value) <= SAME
    if value is None:
        said = f"One of this map and the map for {name} is flat or not finite: they cannot be compared."
    elif good:
        said = f"The map changes with the class: its correlation with the map for {name} is {value:.2f}."
    else:
        near = "" if abs(value) > ALIKE else "much "
        same = f"{near}the same map" + ("" if value > 0 else " with its signs turned")
        said = f"The map for {name} is {same} (correlation {value:.3f}): it does not tell the classes apart."
    return Verdict(name="class-sensitive", value=value, threshold=SAME, passed=good, picture=picture,
                   sentence=f"{said} {how}".rstrip(),
                   advice=("" if good else
                           "Do not read it as evidence for this class; compare with another method."))




def alike(one: Tensor, two: Tensor, view: View) -> float:
    """The correlation of two raw maps (h, w) as the view shows them, -1 to 1; NaN where one is flat or not finite."""
    return correlation(*(torch.from_numpy(seen_as(each.numpy(), view)) for each in (one, two)))


def correlation(one: Tensor, two: Tensor) -> float:
    """Pearson's correlation of two tensors of one shape; NaN where one is the same everywhere or not finite."""
    a, b = one.flatten().double(), two.flatten().double()
    a, b = a - a.mean(), b - b.mean()
    norm = (a.norm() * b.norm()).item()
    return (a @ b).item() / norm if math.isfinite(norm) and norm > 0 else math.nan


def enlarged(raw: Tensor, view: View, size: Sequence[int]) -> Tensor:
    """(H, W): what a view shows of a raw map (h, w), bilinearly enlarged; what is no number counts as 0."""
    values = torch.from_numpy(seen_as(raw.float().nan_to_num(0, 0, 0).numpy(), view))
    if values.shape == tuple(size):
        return values
    return F.interpolate(values[None, None], tuple(size), mode="bilinear", align_corners=False)[0, 0]


def unchecked(name: str, why: str, picture: str, advice: str = "") -> Verdict:
    """A check that could not be made, and why."""
    why = why.rstrip(".")
    return Verdict(name=name, value=None, threshold=None, passed=None, picture=picture, sentence=f"Not checked: {why}.",
                   advice=advice)


def weight_dependent(value: float, picture: str, how: str = "") -> Verdict:
    """How like the map is to the one of the same network with its last layer drawn anew (Adebayo et al. 2018)."""
    name = "weight-dependent"
    if math.isnan(value):
        return unchecked(name, "one of the maps before and after the weights were drawn anew is flat", picture)
    good = value <= WEIGHTS
    said = (f"The map depends on the weights: its correlation with that of a last layer drawn anew is {value:.2f}."
            if good else f"A network whose last layer is drawn anew gives nearly this map (correlation {value:.2f}): "
                         "it does not show what the last layer learned.")
    return Verdict(name=name, value=value, threshold=WEIGHTS, passed=good, picture=picture,
                   sentence=f"{said} {how}".rstrip(),
                   advice="" if good else "Do not read it as what the network learned; --evidence full draws more of "
                                          "it anew.")


def preference(most: Tensor, least: Tensor, here: float) -> float:
    """What removing the most relevant pixels does more than removing the least relevant, -1 to 1.

    sum_k (L_k - M_k) / sum_k (|L_k - s| + |M_k - s|): M_k, L_k the scores after removing a share of pixels, the most
    and the least relevant first, s the score before. 0 for an order that says nothing, 1 where all damage comes from
    the most relevant. The same for a s + b.
    """
    change = (least - here).abs().sum() + (most - here).abs().sum()
    return float((least - most).sum() / change) if change > 0 else 0.0


def faithful(value: float, rolled: Sequence[float], picture: str) -> Verdict:
    """Whether removing what the map marks moves the score more than a map does that knows nothing; rolled: what the
    same map scores when it is moved over the picture."""
    bar = max([FAITHFUL, *rolled]) if not rolled else max(rolled)
    good = math.isfinite(value) and value > bar
    beside = f"the best of {len(rolled)} copies of it moved elsewhere" if rolled else "95 % of maps that know nothing"
    said = (f"Removing what it marks moves the score (preference {value:.2f}), more than for {beside} ({bar:.2f})."
            if good else f"Removing what it marks moves the score no more than for {beside}: preference {value:.2f}, "
                         f"against {bar:.2f}.")
    return Verdict(name="faithful beyond random", value=value, threshold=bar, passed=good, picture=picture,
                   sentence=said, advice="" if good else "Compare with another method, or look at --evidence full; the "
                                                         "marked pixels are not shown to matter to the score.")


def stable(values: Sequence[float], noise: float, picture: str, how: str = "") -> Verdict:
    """How like the map is to those of the same picture with a little noise: the mean over the draws."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return unchecked("stable", "one of the maps with and without noise is flat", picture)
    value = sum(known) / len(known)
    good = value >= STABLE
    said = f"with noise of {noise:.0%} of the picture's range its correlation is {value:.2f}"
    return Verdict(name="stable", value=value, threshold=STABLE, passed=good, picture=picture,
                   sentence=(f"The map stays: {said}. {how}" if good else
                             f"The map changes with what nobody sees: {said}. {how}").rstrip(),
                   advice="" if good else "Average it (smoothgrad), take more samples, or look at a layer (gradcam).")
