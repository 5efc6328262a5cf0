"""The superpixels of a picture as the methods on them use them: where they lie, what hides them, how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from xai.baselines import check_baseline
from xai.panels import Mark, Picture
from xai.sampler import Sampler
from xai.segments import check_segmentation, lined, mean_colours, outlines, segment

MEAN = "mean"  # what hides a superpixel: its own mean colour


def check_superpixels(how: str, baseline: str, name: str) -> None:
    """Raise XaiError where a method called `name` cannot use that segmentation or baseline."""
    check_segmentation(how, f"{name}.segmentation")
    if baseline != MEAN:
        check_baseline(baseline, name)


def superpixels(sampler: Sampler, how: str, count: int, smooth: float) -> Tensor:
    """(H, W) int64, contiguous from 0: the segments of the picture as the network saw it; see `xai.segments`."""
    image, frame = sampler.batch.images[sampler.i], sampler.batch.frames[sampler.i]
    return segment(sampler.batch.seen[sampler.i], how, count, smooth, frame=frame, original=image.size,
                   picture=image.name)


def hidden_by(sampler: Sampler, labels: Tensor, baseline: str, name: str) -> Tensor:
    """(C, H, W): what is seen in place of a hidden segment: "mean", its own mean colour, or a baseline."""
    return mean_colours(sampler.x, labels) if baseline == MEAN else sampler.baseline(baseline, name)


def hidden_in_words(baseline: str) -> str:
    """The same in words."""
    return "its own mean colour" if baseline == MEAN else f"the baseline {baseline}"


def drawn(sampler: Sampler, labels: Tensor, values: Mapping[int, float], note: str) -> Picture:
    """What the network saw with all segments, those of `values` outlined, their numbers in the labels."""
    marks = tuple(Mark("outline", polygon, f"{s}: {value:+.3g}") for s, value in values.items()
                  for polygon in outlines(labels == s))
    return Picture(key="segments_drawn", title="The segments", picture=sampler.picture, note=note, marks=marks,
                   pixels=lined(sampler.batch.seen[sampler.i], labels))


def finite(value: float) -> float | None:
    """None for what no table can hold."""
    return value if math.isfinite(value) else None
