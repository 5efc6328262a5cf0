"""Prepared pictures of one model on its device, and what they cost once: one forward serves every method that asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xai import seeds
from xai.errors import OutOfMemory, error
from xai.images import Image
from xai.layers import Capture, LayerView
from xai.pace import Pace
from xai.preprocessing import Frame, Prepared
from xai.targets import Bound, Target

if TYPE_CHECKING:
    from xai.model import Model


@dataclass(frozen=True)
class Pacing:
    """How many inputs go together: pictures a batch; for many inputs of one picture, the memory in bytes that a forward
    may take (None: half of what is free) and a number that is fixed (None: searched)."""

    batch: int = 0
    memory_bytes: int | None = None
    fixed: int | None = None


ALONE = Pacing()


class Batch:
    """Up to 32 prepared pictures of one model.

    `inputs` (n, C, H, W) on the model's device and in its precision, `seen` the same as (H, W, 3) uint8 pictures,
    `frames` the way back to the originals, `hashes` the pictures' content hashes, `chunk` how many inputs one forward
    may take (a method that asks each picture often fills it). The forward is computed once and dropped with the batch.
    """

    def __init__(self, model: Model, images: Sequence[Image], prepared: Sequence[Prepared], seed: int = 0,
                 truth: Sequence[int | str | None] = (), pacing: Pacing = ALONE) -> None:
        self.model = model
        self.pacing, self.chunk = pacing, max(pacing.batch, len(images))
        self.images = tuple(images)
        self.inputs: Tensor = torch.stack([p.input for p in prepared]).to(model.device, model.dtype)
        self.seen: tuple[np.ndarray, ...] = tuple(p.seen for p in prepared)
        self.frames: tuple[Frame, ...] = tuple(p.frame for p in prepared)
        self.hashes = tuple(image.hash for image in images)
        self.truth = tuple(truth) or tuple(image.label for image in images)
        self.seed = seed
        self._wanted: dict[str, LayerView] = {}
        self._captured: dict[LayerView, Tensor] = {}
        self._graph: Tensor | None = None
        self._bound: dict[tuple[str, str], Bound] = {}
        self._gradients: dict[tuple[LayerView, int], tuple[Bound, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.images)

    def singles(self) -> Iterator[Batch]:
        """Each picture as a batch of its own, for the same layers; with what the forward gave where it reads none."""
        for i in range(len(self)):
            yield self.choose([i], tuple(self._wanted))

    def choose(self, rows: Sequence[int], layers: Sequence[str] = ()) -> Batch:
        """Some of the pictures, for these layers, as a batch of their own; with what the forward gave where none is
        read."""
        ready = [Prepared(self.inputs[i], self.seen[i], self.frames[i]) for i in rows]
        made = Batch(self.model, [self.images[i] for i in rows], ready, self.seed, [self.truth[i] for i in rows],
                     self.pacing)
        made.want(*layers)
        if self._graph is not None and not layers:
            made._graph = self._graph[list(rows)].detach()
        return made

    def like(self, inputs: Tensor | None = None, model: Model | None = None, seed: int | None = None) -> Batch:
        """The same pictures with other inputs (n, C, H, W), for another model that takes such inputs, or with another
        seed; a batch whose forward has not run."""
        inputs = self.inputs if inputs is None else inputs
        ready = [Prepared(*three) for three in zip(inputs, self.seen, self.frames, strict=True)]
        made = Batch(model or self.model, self.images, ready, self.seed if seed is None else seed, self.truth,
                     self.pacing)
        made.want(*self._wanted)
        return made

    @property
    def pace(self) -> Pace:
        """How many inputs one forward takes where a picture is asked about many of them."""
        return self.model.pace(self.inputs.shape[1:], self.pacing.memory_bytes, self.pacing.fixed)

    def boxes(self, i: int) -> np.ndarray | None:
        """The boxes (k, 4) of picture i in the input's pixels, cut to the input; those wholly outside are dropped.

        None where the picture has no boxes at all, (0, 4) where the crop shows none of them.
        """
        found = self.images[i].boxes
        if found is None:
            return None
        height, width = self.inputs.shape[-2:]
        cut = self.frames[i].to_input(found).clip(0, [width, height, width, height])
        return np.asarray(cut[(cut[:, 2:] > cut[:, :2]).all(1)])

    def masks(self, i: int) -> np.ndarray | None:
        """The mask (H, W) bool of picture i in the input's pixels, all False where the crop shows none of it, or None.
        """
        mask = self.images[i].mask
        return None if mask is None else self.frames[i].mask_to_input(mask, *self.inputs.shape[-2:])

    def region(self, i: int) -> np.ndarray | None:
        """Where the object of picture i lies, (H, W) bool: its mask, else the union of its boxes, else None."""
        boxes, mask = self.images[i].boxes, self.masks(i)
        if mask is not None or boxes is None:
            return mask
        return self.frames[i].boxes_to_input(boxes, *self.inputs.shape[-2:])

    def generator(self, i: int, method: str) -> torch.Generator:
        """Random numbers for picture i and a method: the same whatever batch the picture is in, also for its copies."""
        return seeds.generator(self.seed, self.hashes[i].partition("-")[0], method)

    def want(self, *layers: str) -> None:
        """Name layers before the forward, so that one forward records them all."""
        for layer in layers:
            if layer not in self._wanted:
                self._wanted[layer] = self.model.view(layer, self.inputs[:1])
                self._graph = None

    def view(self, layer: str = "auto") -> LayerView:
        """How that layer's output is read as a map."""
        self.want(layer)
        return self._wanted[layer]

    def output(self) -> Tensor:
        """What the head says: logits (n, classes), or (n, channels, h, w); detached."""
        return self._forward().detach()

    def scores(self) -> Tensor:
        """Probabilities (n, classes): softmax of the logits, a sigmoid where the head is multi-label."""
        output = self.output().float()
        return output.sigmoid() if self.model.head.kind == "multi-label" else output.softmax(1)

    def bind(self, target: Target) -> Bound:
        """The target fixed for these pictures."""
        if target.function is not None:
            return target.bind(self.output())
        key = (target.text, target.unless)
        if key not in self._bound:
            self._bound[key] = target.bind(self.output(), kind=self.model.head.kind, labels=self.model.labels,
                                           truth=self.truth, embed=self.model.embed)
        return self._bound[key]

    def activations(self, layer: str = "auto") -> Tensor:
        """(n, K, h, w), detached, of the common forward."""
        view = self.view(layer)
        self._forward()
        return view.to_map(self._captured[view].detach())

    def gradients(self, layer: str, bound: Bound) -> Tensor:
        """(n, K, h, w): the gradient of the target with respect to the layer's output; nothing below it is recorded.

        Raises XaiError where the gradient does not reach the layer.
        """
        self.model.need("gradients")
        view = self.view(layer)
        output = self._forward()
        key = (view, id(bound))
        if key not in self._gradients:
            with torch.enable_grad():
                found = self._back(bound(output), self._captured[view], keep=True)
            self.model.cost.add(backwards=len(self))
            if found is None:
                raise error(f"the layer {view.name!r}", "one that the target's gradient reaches",
                            "a layer beside its path", "Name another with --layer, or take auto")
            self._gradients[key] = (bound, found)  # the bound is kept, so that its id stays its own
        return view.to_map(self._gradients[key][1].detach())

    def score(self, inputs: Tensor, bound: Bound) -> Tensor:
        """(m,): the target on other inputs (m, C, H, W); `bound` must speak of m pictures. No gradient."""
        with torch.no_grad():
            try:
                return bound(self.model(inputs))
            except OutOfMemory:
                if len(inputs) == 1:
                    raise
            return torch.cat([self.score(*half) for half in _halves(inputs, bound)])

    def input_gradient(self, inputs: Tensor, bound: Bound) -> tuple[Tensor, Tensor]:
        """(score (m,), gradient (m, C, H, W)) of the target at other inputs, through frozen parameters;
        in halves where memory is too little."""
        self.model.need("gradients")
        try:
            return self._input_gradient(inputs, bound)
        except OutOfMemory:
            if len(inputs) == 1:
                raise
        scores, gradients = zip(*(self.input_gradient(*half) for half in _halves(inputs, bound)), strict=True)
        return torch.cat(scores), torch.cat(gradients)

    def _input_gradient(self, inputs: Tensor, bound: Bound) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = inputs.detach().clone().requires_grad_()
            score = bound(self.model.run(leaf))
            gradient = self._back(score, leaf)
        self.model.cost.add(backwards=len(inputs))
        if gradient is None:
            raise error("the model", "differentiable for this method", "an output that no gradient reaches",
                        "Use a method that needs only forwards: `xai methods list` names them")
        return score.detach(), gradient

    def _back(self, score: Tensor, leaf: Tensor, *, keep: bool = False) -> Tensor | None:
        """d(sum of scores)/d(leaf), None where none reaches it; keep: the graph serves another target."""
        if not score.requires_grad:
            return None
        found: tuple[Tensor | None, ...] = self.model.told(
            lambda: torch.autograd.grad(score.sum(), leaf, retain_graph=keep, allow_unused=True), leaf)
        return found[0]

    def _forward(self) -> Tensor:
        if self._graph is not None:
            return self._graph
        self._gradients.clear()
        views = list(self._wanted.values())
        if not views or "gradients" not in self.model.capabilities:
            with torch.no_grad():
                self._graph = self.model.run(self.inputs) if not views else self._recorded(views)
        else:
            with torch.enable_grad():
                self._graph = self._recorded(views)
        return self._graph

    def _recorded(self, views: list[LayerView]) -> Tensor:
        self.model.need("hooks")
        module = self.model.runner(view.name for view in views)
        with Capture(module, views, cut=torch.is_grad_enabled()) as capture:
            output = self.model.run(self.inputs, module)
        missing = [view.name for view in views if view not in capture.values]
        if missing:
            raise error("the layer", "one that runs in every forward", repr(missing[0]), "Name another with --layer")
        self._captured = dict(capture.values)
        return output


def _halves(inputs: Tensor, bound: Bound) -> Iterator[tuple[Tensor, Bound]]:
    """Several inputs and their target in two parts."""
    half = len(inputs) // 2
    for rows in (range(half), range(half, len(inputs))):
        yield inputs[rows.start : rows.stop], bound.take(rows)
