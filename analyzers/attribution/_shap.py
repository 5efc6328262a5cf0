"""What the Shapley methods share: the shap package, imported late and kept quiet, and how far shares add up."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from xai.panels import Number
from xai.sampler import Sampler


@contextlib.contextmanager
def quiet_shap(seed: int = 0) -> Iterator[Any]:
    """The package. It draws from numpy's global generator: inside that starts at `seed`, afterwards it is as it was; so
    is Python's own, from which the first import draws."""
    before, plain = np.random.get_state(), random.getstate()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import shap

            np.random.seed(seed)
            yield shap
    finally:
        np.random.set_state(before)
        random.setstate(plain)


def ends(sampler: Sampler, t: int, none: float, total: float) -> tuple[Number, Number]:
    """The score with nothing shown, which all shares are relative to, and how far they miss adding up to the rise.

    t: the target's number; none: its score with nothing shown; total: the sum of the shares.
    """
    here = float(sampler.here[t])
    said = f"The shares add up to {total:.6g}; from nothing shown to the whole picture the score rises by "
    return (
        Number(key="none", title="Score with nothing shown", picture=sampler.picture, value=none, unit=sampler.unit,
               note=f"The whole picture has {here:.6g}."),
        Number(key="efficiency_gap", title="Efficiency gap", picture=sampler.picture, value=total - (here - none),
               unit=sampler.unit, note=f"{said}{here - none:.6g}."),
    )
