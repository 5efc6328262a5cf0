"""Is a map a map at all: finite, not constant, different for another class. Verdicts are sentences with a number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xai.result import Verdict

SAME = 0.999  # above this correlation two maps are the same picture to the eye


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
    a, b = values.flatten().double(), other.flatten().double()
    a, b = a - a.mean(), b - b.mean()
    norm = (a.norm() * b.norm()).item()
    known = math.isfinite(norm) and norm > 0
    correlation = (a @ b).item() / norm if known else None
    good = correlation is not None and (abs(correlation) if view == "abs" else correlation) <= SAME
    if correlation is None:
        said = f"One of this map and the map for {name} is flat or not finite: they cannot be compared."
    elif good:
        said = f"The map changes with the class: its correlation with the map for {name} is {correlation:.2f}."
    else:
        same = "the same map" if correlation > 0 else "the same map with its signs turned"
        said = f"The map for {name} is {same} (correlation {correlation:.3f}): it does not tell the classes apart."
    return Verdict(name="class-sensitive", value=correlation, threshold=SAME, passed=good, picture=picture,
                   sentence=f"{said} {how}".rstrip(),
                   advice=("" if good else
                           "Do not read it as evidence for this class; compare with gradcam or integrated_gradients."))


