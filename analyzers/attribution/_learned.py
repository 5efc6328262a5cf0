"""What the learned masks share: the picture softened, the value of a class at masked forms of it, their evidence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from xai.baselines import blurred
from xai.batch import Batch
from xai.panels import Axis, Column, Curve, Table
from xai.sampler import valued
from xai.targets import Bound

ROUNDING = 1e-6  # two pictures that differ by less than this part of the larger are the same but for rounding


def softened(x: Tensor, sigma: float) -> Tensor:
    """(C, H, W) blurred by a Gaussian of standard deviation sigma in pixels; where that changes nothing but the
    rounding, x itself, so that a mask over it has no effect at all."""
    soft = blurred(x[None], sigma)[0]
    return torch.where((soft - x).abs() <= ROUNDING * x.abs().max(), x, soft)


def worth(batch: Batch, target: Bound, i: int, count: int, value: str) -> Bound:
    """The target for `count` forms of picture i, as a logit, a probability or log-odds where it is a class (see
    `xai.sampler`); any other target as it is."""
    taken, kind = target.take([i] * count), batch.model.head.kind
    if value == "logit" or taken.classes is None:
        return taken

    def score(output: Tensor) -> Tensor:
        return taken(valued(output.float() if output.element_size() < 4 else output, kind, value))

    return dataclasses.replace(taken, score=score, chosen=None)


def course(batch: Batch, i: int, rows: Sequence[Sequence[float]], names: Sequence[str]) -> Curve:
    """The objective over the steps: rows (steps, lines)."""
    values = np.array(rows, dtype=np.float32).T
    return Curve(key="course", title="The objective over the steps", picture=batch.hashes[i], names=tuple(names),
                 x=np.arange(1, len(rows) + 1, dtype=np.float32), y=values, axes=(Axis("step"), Axis("objective")),
                 note="The last step is neither shifted nor flipped.")


def told(batch: Batch, i: int, rows: Sequence[tuple[str, float | None, float]], name: str) -> Table:
    """What the network says to the masked picture: rows of a form, the share of it that is kept, and its score."""
    cells = tuple((form, None if kept is None else _plain(kept), _plain(score)) for form, kept, score in rows)
    columns = (Column("what the network sees"), Column("kept"), Column(name, name if name == "probability" else ""))
    return Table(key="forms", title="What the network says to the masked picture", picture=batch.hashes[i],
                 rows=cells, columns=columns)


def _plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
