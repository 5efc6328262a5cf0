"""What is analysed: models, pictures, target, seed and budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from xai.errors import error
from xai.images import Images, load_images
from xai.model import Model
from xai.targets import Target, parse_targets
from xai.zoo.loading import load


@dataclass(frozen=True)
class Subject:
    """models: 0, 1, 2 or many; images: a collection or None; targets: what is explained; memory_bytes, max_forwards:
    budgets (None: half of what is free; no limit); evidence: how much the maps are checked, off, quick or full."""

    models: tuple[Model, ...] = ()
    images: Images | None = None
    targets: tuple[Target, ...] = field(default_factory=lambda: (Target(),))
    seed: int = 0
    memory_bytes: int | None = None
    max_forwards: int | None = None
    evidence: str = "quick"

    @classmethod
    def of(cls, models: Any = (), images: Any = None, *, target: str | Target | Sequence[Target] = "top1",
           **budgets: Any) -> Subject:
        """From what people write: specs or Models, path or array, a target in words. Raises XaiError for bad input."""
        return cls(tuple(as_model(m) for m in (models if isinstance(models, (list, tuple)) else [models])),
                   None if images is None else images if isinstance(images, Images) else load_images(images),
                   as_targets(target), **budgets)

    def one_model(self) -> Model:
        """The only model; raises XaiError where there are none or several."""
        if len(self.models) != 1:
            raise error("the number of models", "one for this method", len(self.models), "Name one with --model")
        return self.models[0]


def as_model(model: Any, **options: Any) -> Model:
    """A Model from a spec, a torch module or a Model."""
    if isinstance(model, Model):
        return model
    if isinstance(model, str):
        with torch.inference_mode(False):  # in the caller's the weights would never take part in a gradient
            return load(model, **options)
    if isinstance(model, nn.Module):
        return Model(model)
    raise error("the model", "a spec, a torch module or an xai.Model", type(model).__name__, "See `xai models list`")


def as_targets(target: str | Target | Sequence[Target] | Any) -> tuple[Target, ...]:
    """Targets from words, a Target, several, or a callable output -> (n,)."""
    if isinstance(target, Target):
        return (target,)
    if isinstance(target, str):
        return tuple(parse_targets(target))
    if callable(target):
        return (Target(getattr(target, "__name__", "callable"), target),)
    if isinstance(target, int):
        return (Target(f"class:{target}"),)
    return tuple(own for one in target for own in as_targets(one))
