"""Asks a model about perturbed forms of one picture, as many as it takes: the floor under all perturbation methods."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xai.baselines import of_inputs
from xai.batch import Batch
from xai.errors import OutOfMemory
from xai.targets import Bound

VALUES = ("logit", "probability", "log_odds")
CLASSED = ("classes", "multi-label")  # kinds of head whose outputs are those of classes
Paint = Callable[[Tensor, Tensor], Any]  # (codes (m, ...), out (m, C, H, W)): fills out; what it returns is handed on


@dataclass(frozen=True)
class Answer:
    """What the model said of one chunk: the codes that it was painted from, what painting returned (masks, say), and
    the scores (m, T), float64 on the CPU."""

    codes: Tensor
    made: Any
    scores: Tensor


class Sampler:
    """Perturbed forms of picture `i` of a batch, and the scores of several targets for each of them at once.

    value: what the score of a class is: its logit, its probability (softmax; a sigmoid where the head is multi-label)
    or its log-odds, log p - log(1 - p). Targets that are no classes (a region, a similarity, a callable) and heads that
    hold none (a regression) always give their raw score. owners: for each target the number of the one that it is there
    for (a class to compare with), its own where it was asked for: a method that stops early listens to these alone, so
    that no map depends on what else was asked.
    """

    def __init__(self, batch: Batch, i: int, targets: Sequence[Bound], value: str = "logit",
                 owners: Sequence[int] = ()) -> None:
        self.batch, self.i, self.model = batch, i, batch.model
        self.owners = tuple(owners) or tuple(range(len(targets)))
        self.picture = batch.hashes[i]
        self.x = batch.inputs[i]
        self.names = tuple(target.names[i] for target in targets)
        self._targets = [target.take([i]) for target in targets]
        self._taken: dict[int, list[Bound]] = {}
        self._value, kind = value, self.model.head.kind
        units = {unit_of(target, kind, value) for target in targets}
        self.unit = units.pop() if len(units) == 1 else "score"
        self.here = self.read(batch.output()[i : i + 1])[0]

    def generator(self, method: str) -> torch.Generator:
        """Random numbers that depend on (seed, picture, method) alone."""
        return self.batch.generator(self.i, method)

    def baseline(self, which: str | float, name: str) -> Tensor:
        """(C, H, W): the picture that stands for nothing to see; see `xai.baselines`."""
        return of_inputs(self.x[None], self.model.preprocessing, which, name)[0]

    def read(self, output: Tensor) -> Tensor:
        """(m, T), float64 on the CPU: the scores in what the head holds for m forms of the picture."""
        if len(output) not in self._taken:
            self._taken[len(output)] = [target.take([0] * len(output)) for target in self._targets]
        raw = output if output.element_size() >= 4 else output.float()  # half precision is too coarse for sums
        of_classes = valued(raw, self.model.head.kind, self._value)
        scores = [bound(of_classes if bound.classes is not None else raw) for bound in self._taken[len(output)]]
        return torch.stack(scores, 1).detach().cpu().double()

    def scores(self, inputs: Tensor) -> Tensor:
        """(m, T), float64 on the CPU, for inputs (m, C, H, W); m forwards."""
        found = self.ask([inputs], lambda codes, out: out.copy_(codes))
        return torch.cat([answer.scores for answer in found])

    def ask(self, blocks: Iterable[Tensor], paint: Paint, total: int = 0) -> Iterator[Answer]:
        """The answers in order, chunk by chunk, to blocks of codes (k, ...): what stands for a perturbed form each.

        `paint` makes the forms of a chunk in one reused buffer, on the model's device. A chunk never reaches over the
        end of a block. Where memory runs out the chunk is halved and painted again: painting must draw nothing. total:
        codes in all blocks, as far as known: with many to come, chunks of other sizes are tried.
        """
        done = 0
        buffer = self.x.new_empty((0, *self.x.shape))
        pace = self.batch.pace
        for block in blocks:
            first = 0
            while first < len(block):
                size = pace.size(len(block) - first, total - done)
                started = time.perf_counter()
                try:
                    if len(buffer) < size:
                        buffer = self.x.new_empty((size, *self.x.shape))
                    codes = block[first : first + size]
                    made = paint(codes, buffer[: len(codes)])
                    scores = self.read(self.model.infer(buffer[: len(codes)], chunk=pace.best))
                except (OutOfMemory, torch.OutOfMemoryError, MemoryError):
                    if size == 1:
                        raise
                    pace.short(size)
                    buffer = buffer[:0].clone()
                    continue
                pace.took(size, time.perf_counter() - started)
                yield Answer(codes, made, scores)
                first, done = first + size, done + size


def valued(output: Tensor, kind: str, value: str) -> Tensor:
    """What a head of that kind holds, (n, classes), as one of VALUES; as it is where it holds no classes."""
    if value == "logit" or kind not in CLASSED:
        return output
    if kind == "multi-label":
        return output.sigmoid() if value == "probability" else output
    return output.softmax(1) if value == "probability" else log_odds(output)


def unit_of(target: Bound, kind: str, value: str) -> str:
    """What that value of a target is called."""
    return value.replace("_", "-") if target.classes is not None and kind in CLASSED else "score"


def log_odds(logits: Tensor) -> Tensor:
    """log p - log(1 - p) of each class, p the softmax of logits (n, classes): z_c - log sum over the others of exp z.

    The sum without the largest class is taken by itself, so that nothing cancels where that class is all but certain.
    """
    top = logits.argmax(1, keepdim=True)
    shifted = logits - logits.gather(1, top)
    rest = shifted.scatter(1, top, -math.inf).logsumexp(1, keepdim=True)  # however far below the largest they are
    weights = shifted.exp()
    return shifted - (weights.sum(1, keepdim=True) - weights).log().scatter(1, top, rest)


def shown(x: Tensor, fill: Tensor, labels: Tensor) -> Paint:
    """Segments shown or hidden: codes (m, n) in [0, 1], 1 = shown, give fill + M (x - fill), M = codes[:, labels].

    x, fill (C, H, W); labels (H, W), each pixel's segment. All ones give x and all zeros give fill, to the bit.
    """
    flat, edge = labels.flatten().to(x.device), fill.to(x)
    gap = x - edge

    def paint(codes: Tensor, out: Tensor) -> None:
        mask = codes.to(x)[:, flat].view(len(codes), 1, *labels.shape)
        torch.addcmul(edge, mask, gap, out=out)
        whole = (codes == 1).all(1)
        if whole.any():  # fill + (x - fill) is x only up to rounding
            out[whole.to(out.device)] = x

    return paint
