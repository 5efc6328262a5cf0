"""Is a map a map at all: finite, not constant, different for another class. Verdicts are sentences with a number."""

from __future__ import annotations

import torch
from torch import Tensor

from xai.result import Verdict

SAME = 0.999  # above this correlation two maps are the same picture to the eye


def finite(values: Tensor, picture: str) -> Verdict:
    """The share of finite values of one raw map (h, w)."""
    share = torch.isfinite(values).float().mean().item()
    good = share == 1.0
    said = ("Every value of the map is a finite number." if good else
            f"{1 - share:.1%} of the map's values are not finite numbers.")
    return Verdict(name="finite", value=share, threshold=1.0, passed=good, sentence=said, picture=picture,
                   advice="" if good else "Try --precision float32 or float64, and check the input's range.")


def varied(values: Tensor, picture: str) -> Verdict:
    """The spread (max - min) of one raw map over its largest absolute value; a flat or zero map explains nothing."""
    known = values[torch.isfinite(values)]
    top = known.abs().max().item() if known.numel() else 0.0
    spread = (known.max() - known.min()).item() / top if top > 0 else 0.0
    good = spread > 1e-6
    what = "zero everywhere" if top == 0 else "the same everywhere"
    return Verdict(name="not constant", value=spread, threshold=1e-6, passed=good, picture=picture,
                   sentence=("The map differs from place to place." if good else
                             f"The map is {what}: it says nothing about where."),
                   advice=("" if good else
                           "Try another layer (--layer) or another target; `xai models info` lists the layers."))


def shown(values: Tensor, view: str, picture: str) -> Verdict | None:
    """A failing verdict where the stated view hides the whole map (a ReLU of an all-negative one), else None."""
    if view != "relu" or not values.numel() or values.max() > 0 or values.abs().max() == 0:
        return None
    return Verdict(name="visible", value=values.max().item(), threshold=0.0, passed=False, picture=picture,
                   sentence="Every value is negative, so the method's ReLU leaves nothing to see: "
                            "no place speaks for this class.",
                   advice="Read the raw map (--save npy), or explain another class or a contrast.")


def class_sensitive(values: Tensor, other: Tensor, name: str, picture: str) -> Verdict:
    """The correlation of one map (h, w) with the map for another class, called `name`."""
    a, b = values.flatten().double(), other.flatten().double()
    a, b = a - a.mean(), b - b.mean()
    norm = (a.norm() * b.norm()).item()
    correlation = (a @ b).item() / norm if norm > 0 else 0.0
    good = abs(correlation) <= SAME and norm > 0
    said = (f"The map changes with the class: its correlation with the map for {name} is {correlation:.2f}."
            if good else
            f"The map for {name} is the same map (correlation {correlation:.3f}): it does not tell the classes apart.")
    return Verdict(name="class-sensitive", value=correlation, threshold=SAME, passed=good, sentence=said,
                   picture=picture,
                   advice=("" if good else
                           "Do not read it as evidence for this class; compare with gradcam or integrated_gradients."))


