"""Gram matrices of many layers from one forward: each activation is reduced inside its hook and never kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from xai import outputs
from xai.batch import Batch
from xai.errors import OutOfMemory, did_you_mean, error
from xai.layers import inside_backward
from xai.model import Model
from xai.similarity import gram

WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)
PIXELS = "(pixels)"


@dataclass(frozen=True)
class Reading:
    """What one layer said of a block: its Gram matrix (n, n) float64, the mean squared norm of a picture's features
    before they were centred, and the shape of the features of one picture."""

    gram: Tensor
    away: float
    shape: tuple[int, ...]


def chosen(module: nn.Module, text: str) -> list[str]:
    """The modules' names that `text` means: auto, every convolution and linear layer; conv, the convolutions; or names
    and patterns separated by commas, of which one that fits no module is passed over."""
    parts = [(name, part) for name, part in module.named_modules() if name]
    if text in ("auto", "conv"):
        kinds = WEIGHTED if text == "auto" else WEIGHTED[:1]
        return [name for name, part in parts if isinstance(part, kinds)]
    patterns = [one.strip() for one in text.split(",") if one.strip()]
    return [name for name, _ in parts if any(fnmatchcase(name, pattern) for pattern in patterns)]


def check_patterns(models: Sequence[Model], text: str, what: str) -> None:
    """Raise XaiError where a name or pattern fits no module of any model, or a model has no such layer."""
    trees = [[name for name, _ in model.runner(None).named_modules() if name] for model in models]
    for pattern in [] if text in ("auto", "conv") else [one.strip() for one in text.split(",") if one.strip()]:
        if not any(fnmatchcase(name, pattern) for names in trees for name in names):
            known = [name for names in trees for name in names]
            raise error(what, "auto, conv, or modules of the network", repr(pattern),
                        did_you_mean(pattern, known) or "See `xai models info`")
    for model in models:
        if not chosen(model.runner(None), text):
            raise error(what, f"such that {model.spec} has one of them", repr(text), "Name its own layers as well")


def read(model: Model, batches: Sequence[Batch], text: str, what: str) -> dict[str, Reading]:
    """The input and every chosen layer that runs and gives a row a picture, by name, in the order in which they ran.

    One forward of all pictures of the batches together. A module's later calls are name:1, name:2, ...
    Raises XaiError where the pictures have several sizes, or memory is too little for them in one forward.
    """
    shapes = {tuple(batch.inputs.shape[1:]) for batch in batches}
    if len(shapes) > 1:
        raise error("the prepared pictures", "of one size", ", ".join(map(str, sorted(shapes))),
                    "Give pictures that the model scales itself, or of one size")
    inputs = torch.cat([batch.inputs for batch in batches])
    module = model.runner(None)  # itself: copies of two networks would take more memory than all that is kept
    names = chosen(module, text)
    found = {PIXELS: _reading(inputs)}
    calls: Counter[str] = Counter()

    def hook(name: str) -> Any:
        def take(_: nn.Module, args: Any, output: Any) -> None:
            tensor = next((t for _, t in outputs.tensors(output)), None)
            if inside_backward() or tensor is None or not tensor.is_floating_point() or not tensor.ndim:
                return
            call, calls[name] = calls[name], calls[name] + 1
            if len(tensor) == len(inputs):
                found[f"{name}:{call}" if call else name] = _reading(tensor.detach())
        return take

    handles = [module.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        with torch.no_grad():
            model.run(inputs, module)
    except OutOfMemory as problem:
        raise error("the memory", f"enough for {len(inputs)} pictures in one forward", "too little",
                    f"Lower {what.partition('.')[0]}.minibatch with --set") from problem
    finally:
        for handle in handles:
            handle.remove()
    if len(found) == 1:
        raise error(what, "layers that run and give one row a picture", repr(text), "Name others")
    return found


def _reading(tensor: Tensor) -> Reading:
    matrix, away = gram(tensor)
    return Reading(matrix, float(away), tuple(tensor.shape[1:]))
