"""AblationCAM: a layer's activations, each channel weighed by what the score loses without it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from analyzers.attribution._cam import full, weighted
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.errors import OutOfMemory, XaiError, error
from xai.model import Model
from xai.panels import View
from xai.sampler import Sampler
from xai.tail import Above, Tail
from xai.targets import Bound


@dataclass(frozen=True)
class AblationCAM(Attribution):
    """AblationCAM: a layer's activations, each channel weighed by what the score loses without it.

    L = sum over channels of w_k A_k, w_k = S - S with A_k set to zero. The paper divides w_k by S, which turns the map
    over where the score is negative; here it is not divided, so that the two differ by the factor |S| and, there, by
    the sign. Only what lies above the layer is run for each channel. Where all of that is affine (pooling and a linear
    map, say) and a class is explained, w_k is the sum over places of G_k A_k exactly, G = dS/dA. View: relu.

    Reads     one model, images
    Yields    one signed map an image, at the layer's size, in units of the score times the activation
    Raises    XaiError if the layer has no spatial output
    Cost      a run of what lies above the layer, counted as a forward, for each channel and one for all of them, and a
              forward where that part reads more than the layer; where it is affine one backward above the layer, that
              of all targets at once; where it cannot be cut off the network (its code asks for values), whole forwards
    Reference Desai and Ramaswamy 2020, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via
              Gradient-free Localization", WACV, section 3
    """

    layer: str = param("auto", "layer to look at; auto = the last spatial one that the target's gradient reaches")

    needs = frozenset({"hooks", "images"})
    view: ClassVar[View] = "relu"
    shares: ClassVar[bool] = True

    def passes(self, model: Model) -> Passes:
        """A run above the layer for each channel and one more, or a backward."""
        try:
            view = model.view(self.layer)
        except XaiError:  # the run says so, for each picture
            return Passes()
        tail = Tail.of(model, view)
        runs = 0 if tail.affine else view.channels + 1
        return Passes(forwards=tail.opening + runs, backwards=int(tail.affine))

    def maps_for(self, batch: Batch, targets: Sequence[Bound], owners: Sequence[int] = ()) -> list[Maps]:
        """(n, h, w) at the layer's size for each target."""
        activations = batch.activations(self.layer)
        tail = Tail.of(batch.model, batch.view(self.layer))
        closed = tail.affine and all(target.classes is not None for target in targets)
        found = []
        for i in range(len(batch)):
            above, maps = tail.at(batch.model, batch.inputs[i : i + 1]), activations[i : i + 1]
            found.append(slopes(batch, i, above, maps, targets) if closed else
                         losses(batch, i, above, maps, targets, None if not tail.cut else
                                batch.pacing.fixed or tail.rows(batch.pacing.memory_bytes, batch.model.device)))
        seen = full(activations)
        return [Maps(weighted(weights.to(seen), seen)) for weights in torch.stack(found, 1)]


def losses(batch: Batch, i: int, above: Above, maps: Tensor, targets: Sequence[Bound], rows: int | None) -> Tensor:
    """(T, K) float64: each score's loss without each channel of maps (1, K, h, w), `rows` channels at a time (None: as
    many as the whole network takes)."""
    sampler, count = Sampler(batch, i, targets), maps.shape[1]
    buffer, scores, first = maps[:0], [], 0
    while first <= count:  # the last row has all channels
        size = min(rows or batch.pace.size(count + 1 - first), count + 1 - first)
        started = time.perf_counter()
        try:
            if len(buffer) < size:
                buffer = maps.repeat(size, 1, 1, 1)
            ablated = range(min(size, count - first))
            buffer[ablated, range(first, first + len(ablated))] = 0
            with torch.no_grad():
                scores.append(sampler.read(above(buffer[:size])))
            buffer[ablated, range(first, first + len(ablated))] = maps[0, first : first + len(ablated)]
        except (OutOfMemory, torch.OutOfMemoryError, MemoryError):
            if size == 1:
                raise
            rows, buffer = size // 2, maps[:0]
            continue
        if rows is None:
            batch.pace.took(size, time.perf_counter() - started)
        first += size
    every = torch.cat(scores).T
    return every[:, -1:] - every[:, :-1]


def slopes(batch: Batch, i: int, above: Above, maps: Tensor, targets: Sequence[Bound]) -> Tensor:
    """The same (T, K) where the score is affine in the maps: sum over places of G A, one row of a backward a target."""
    with torch.enable_grad():
        leaf = maps.detach().repeat(len(targets), 1, 1, 1).requires_grad_()
        output = above.uncounted(leaf)
        scores = torch.stack([target.take([i])(row[None])[0] for target, row in zip(targets, output, strict=True)])
        found = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)[0] if scores.requires_grad else None
        if found is None:
            raise error("the layer", "one that the target's score depends on", "a layer beside its path",
                        "Name another with --layer, or take auto")
    batch.model.cost.add(backwards=1)
    return (full(found) * full(maps)).sum((2, 3)).double().cpu()
