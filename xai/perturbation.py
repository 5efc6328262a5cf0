"""Attributions that only ask about perturbed pictures: any model that gives scores will do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xai.analyzer import Maps
from xai.attribution import Attribution
from xai.batch import Batch
from xai.errors import error
from xai.panels import AnyPanel
from xai.sampler import Sampler
from xai.targets import Bound


@dataclass(frozen=True)
class Found:
    """What came of one picture and target: the raw map (h, w), its standard errors, further evidence."""

    values: Tensor
    error: Tensor | None = None
    panels: tuple[AnyPanel, ...] = ()


@dataclass(frozen=True)
class Perturbation(Attribution):
    """An attribution that only asks about perturbed pictures; one set of forwards serves all its targets.

    A subclass writes `picture`, and declares `value` (one of `xai.sampler.VALUES`) where it offers the choice.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"forward", "images"})
    shares: ClassVar[bool] = True
    singly: ClassVar[bool] = True

    def picture(self, sampler: Sampler) -> list[Found]:
        """What comes of one picture, for each target in order."""
        raise error(f"the method {self.name()}", "one that says what it asks of a picture", "an abstract one",
                    "Use one from `xai methods list`")

    def maps_for(self, batch: Batch, targets: Sequence[Bound], owners: Sequence[int] = ()) -> list[Maps]:
        """One after the other: a picture's masks fill the forwards by themselves, whatever else is in the batch."""
        value = str(getattr(self, "value", "logit"))
        by_picture = [self.picture(Sampler(batch, i, targets, value, owners)) for i in range(len(batch))]
        return [stacked(list(found), batch) for found in zip(*by_picture, strict=True)]


def stacked(found: Sequence[Found], batch: Batch) -> Maps:
    """The maps of a batch from those of its pictures: float32, or float64 where the model runs in it."""
    dtype = torch.float64 if batch.inputs.dtype == torch.float64 else torch.float32
    errors = [one.error for one in found if one.error is not None]
    return Maps(torch.stack([one.values for one in found]).to(dtype),
                torch.stack(errors).to(dtype) if len(errors) == len(found) else None,
                tuple(panel for one in found for panel in one.panels))
