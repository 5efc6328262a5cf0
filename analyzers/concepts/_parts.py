"""The parts of pictures as players: scores that a model tells of itself, or boxes that are shown or hidden."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from analyzers.concepts._drawn import KEPT, Packed
from analyzers.concepts._left import Left
from xai.batch import Batch
from xai.errors import XaiError, error
from xai.images import Image, Images
from xai.model import Model
from xai.sampler import Paint, Sampler, valued
from xai.shapley import coalitions, of_vectors, solve
from xai.targets import Target, find_class

AGREE = 1e-3  # of the largest score: how far classify(parts(x)) may lie from the model's own output
EXACT = 12  # parts of a part model up to which all coalitions are asked: its classifier is small
CHUNK = 32  # pictures that are prepared at once


@runtime_checkable
class PartModel(Protocol):
    """A network that tells its parts: model(x) = classify(parts(x)).

    part_names: F names. parts: inputs (n, C, H, W) -> scores (n, F), larger where the part is there. classify: scores
    (n, F) -> the model's output (n, classes), each row by itself.
    """

    part_names: Sequence[str]

    def parts(self, x: Tensor) -> Tensor:
        """Scores (n, F)."""

    def classify(self, parts: Tensor) -> Tensor:
        """Outputs (n, classes)."""


@dataclass(frozen=True)
class Sheet:
    """A picture with what its annotations say: its labels, of which one may name its class, and of each part the boxes
    (k, 4) and the mask (h, w), in its own pixels."""

    image: Image
    labels: tuple[int | str, ...]
    parts: dict[str, tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Player:
    """What one picture says. attr, error (F, K): Shapley values of its parts for the graph's classes and their standard
    errors; present, asked (F,) bool; predicted, truth: columns of the graph, -1 where it has none; boxes: of its parts,
    in the pixels of `seen`, what the network saw."""

    name: str
    picture: str
    attr: Tensor
    error: Tensor
    present: Tensor
    asked: Tensor
    predicted: int
    truth: int
    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()
    seen: Packed | None = None


# --- annotated pictures ---
def sheets(images: Images, left: Left) -> Iterator[Sheet]:
    """The pictures with their parts: entries that stand one after the other and show the same pixels are one picture,
    as annotation files give one for each class of box. A box without a label bears its picture's."""
    held: list[Image] = []
    for i in range(len(images)):
        try:
            image = images[i]
        except XaiError as problem:
            left.add(images.names[i], str(problem))
            continue
        if held and held[0].hash != image.hash:
            yield _sheet(held, images.label_names)
            held = []
        held.append(image)
    if held:
        yield _sheet(held, images.label_names)


def _sheet(entries: Sequence[Image], names: Sequence[str] | None) -> Sheet:
    parts: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    for one in entries:
        boxes = np.zeros((0, 4), np.float32) if one.boxes is None else one.boxes
        own = one.box_labels if one.box_labels is not None else (one.label,) * len(boxes)
        kinds = [_name(label, names) for label in own]
        for kind in dict.fromkeys(kinds):
            here = boxes[[k == kind for k in kinds]]
            of_class = one.label is not None and set(kinds) == {_name(one.label, names)}  # as annotation files have it
            parts[kind] = here, one.mask if of_class else None
    labels = dict.fromkeys(one.label if names is None else _name(one.label, names)
                           for one in entries if one.label is not None)
    name = entries[0].name if len(entries) == 1 else entries[0].name.rpartition("#")[0] or entries[0].name
    return Sheet(dataclasses.replace(entries[0], name=name), tuple(labels), parts)


def _name(label: int | str | None, names: Sequence[str] | None) -> str:
    if isinstance(label, int):
        return names[label] if names and label < len(names) else f"class:{label}"
    return "object" if label is None else label


def class_of(labels: Iterable[int | str | None], model: Model) -> int | None:
    """The model's class that the first label names that names any."""
    for label in labels:
        text = f"class:{label}" if isinstance(label, int) else label
        found = None if text is None else find_class(text, model.labels, model.head.size)
        if found is not None:
            return found
    return None


@dataclass(frozen=True)
class Ask:
    """How annotated parts are asked about. parts: the graph's names; columns: its classes' numbers in the model."""

    model: Model
    parts: tuple[str, ...]
    columns: tuple[int, ...]
    value: str
    baseline: str
    samples: int
    seed: int
    memory_bytes: int | None
    method: str


def annotated(ask: Ask, images: Images, left: Left) -> Iterator[Player]:
    """The players of every picture that shows a part of the graph."""
    met: dict[str, int] = {}
    chunk: list[Sheet] = []
    for sheet in sheets(images, left):
        if not any(kind in ask.parts for kind in sheet.parts):
            left.add(sheet.image.name, "no box is labelled with a part of the graph")
            continue
        key = sheet.image.hash
        met[key] = met.get(key, 0) + 1
        if met[key] > 1:  # the record tells pictures apart by their hash
            sheet = dataclasses.replace(sheet, image=dataclasses.replace(sheet.image, hash=f"{key}-{met[key]}"))
        chunk.append(sheet)
        if len(chunk) == CHUNK:
            yield from _asked(ask, chunk, left)
            chunk = []
    if chunk:
        yield from _asked(ask, chunk, left)


def _asked(ask: Ask, chunk: Sequence[Sheet], left: Left) -> Iterator[Player]:
    by_hash = {sheet.image.hash: sheet for sheet in chunk}
    for batch in ask.model.prepare([sheet.image for sheet in chunk], seed=ask.seed, memory_bytes=ask.memory_bytes,
                                   bad=left.add):
        bound = batch.bind(Target("top1"))
        for i, image in enumerate(batch.images):
            regions = _regions(batch, i, by_hash[image.hash], ask.parts)
            if not regions:
                left.add(image.name, "the model's crop shows none of its parts")
                continue
            player = _player(ask, _Classes(batch, i, [bound], ask.value), regions, by_hash[image.hash])
            if bool(player.attr.isfinite().all()):
                yield player
            else:
                left.add(image.name, "the model gives what is no finite number")


def _regions(batch: Batch, i: int, sheet: Sheet, parts: Sequence[str]) -> dict[int, np.ndarray]:
    """Number of the part -> (H, W) bool, where it lies in the input; parts outside of the crop are left out."""
    size, found = batch.inputs.shape[-2:], {}
    for j, kind in enumerate(parts):
        boxes, mask = sheet.parts.get(kind, (np.zeros((0, 4)), None))
        if not len(boxes) and mask is None:
            continue
        frame = batch.frames[i]
        where = frame.mask_to_input(mask, *size) if mask is not None else frame.boxes_to_input(boxes, *size)
        if where.any():
            found[j] = where
    return found


def _player(ask: Ask, sampler: _Classes, regions: dict[int, np.ndarray], sheet: Sheet) -> Player:
    places, n = list(regions), len(regions)
    drawn = 2**n - 2 > ask.samples
    z, weights = coalitions(n, ask.samples, sampler.generator(ask.method) if drawn else None)
    fill = sampler.baseline(ask.baseline, ask.method)
    paint = hiding(sampler.x, fill, torch.from_numpy(np.stack(list(regions.values()))))
    asked = sampler.ask([torch.cat([torch.zeros(1, n, dtype=torch.uint8), z])], paint)
    scores = torch.cat([answer.scores for answer in asked])[:, list(ask.columns)]
    found = solve(z, weights, scores[1:], scores[0], sampler.here[list(ask.columns)])
    attr, spread = torch.zeros(2, len(ask.parts), len(ask.columns), dtype=torch.float64)
    attr[places], spread[places] = found.phi, found.error
    there = torch.zeros(len(ask.parts), dtype=torch.bool)
    there[places] = True
    batch, i = sampler.batch, sampler.i
    step = -(-max(batch.seen[i].shape[:2]) // KEPT)  # of the pixels that are kept for drawing
    boxes = tuple((ask.parts[j], _around(where[::step, ::step])) for j, where in regions.items()
                  if where[::step, ::step].any())
    return Player(batch.images[i].name, batch.hashes[i], attr, spread, there, there,
                  column(int(batch.output()[i].argmax()), ask.columns),
                  column(class_of(sheet.labels, ask.model), ask.columns), boxes, Packed.of(batch.seen[i]))


def _around(where: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1


def column(number: int | None, columns: Sequence[int]) -> int:
    """The graph's column of a class of the model, -1 where it has none."""
    return columns.index(number) if number in columns else -1


class _Classes(Sampler):
    """A sampler whose scores are those of all classes."""

    def read(self, output: Tensor) -> Tensor:
        """(m, classes), float64 on the CPU."""
        raw = output if output.element_size() >= 4 else output.float()
        return valued(raw, self.model.head.kind, self._value).detach().cpu().double()


def hiding(x: Tensor, fill: Tensor, regions: Tensor) -> Paint:
    """Codes (m, p), 1 = the part is shown: where a hidden part lies there is `fill`, also where it overlaps a shown
    one; what no part covers is always shown. x, fill (C, H, W); regions (p, H, W) bool."""
    flat = regions.flatten(1).to(x)

    def paint(codes: Tensor, out: Tensor) -> None:
        hidden = ((1 - codes.to(x)) @ flat > 0).view(len(codes), 1, *regions.shape[1:])
        torch.where(hidden, fill.to(x), x, out=out)

    return paint


# --- part models ---
@dataclass(frozen=True)
class Told:
    """What a part model says of all pictures: scores (N, F), outputs (N, classes), and who they are."""

    names: list[str]
    pictures: list[str]
    labels: list[int | str | None]
    scores: Tensor
    outputs: Tensor


def part_names(model: Model) -> tuple[str, ...] | None:
    """The parts that a model tells of itself; None where it does not. Raises XaiError for names that are none."""
    if "gradients" not in model.capabilities:
        return None
    with model.opened() as module:
        if not isinstance(module, PartModel):
            return None
        names = tuple(module.part_names)
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise error(f"part_names of {model.spec}", "different names, one a part", str(list(names))[:80],
                    "Name each part once")
    return names


def told(model: Model, images: Images, count: int, seed: int, memory_bytes: int | None, left: Left) -> Told:
    """Part scores and outputs of all pictures; two forwards each. Raises XaiError where the two do not fit."""
    names, pictures, labels = list[str](), list[str](), list[int | str | None]()
    scores, outputs = [], []
    for batch in model.prepare(images, seed=seed, memory_bytes=memory_bytes, bad=left.add):
        own = batch.output().float()
        with model.opened() as module, torch.no_grad():
            assert isinstance(module, PartModel)
            found = model.told(partial(module.parts, batch.inputs), batch.inputs)
            model.cost.add(forwards=len(batch))
            if not isinstance(found, Tensor) or found.shape != (len(batch), count):
                got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise error(f"parts(x) of {model.spec}", f"scores of shape {(len(batch), count)}", got,
                            "Give one score for each picture and name in part_names")
            again = model.told(partial(module.classify, found), batch.inputs).float()
        if again.shape != own.shape or float((again - own).abs().max()) > AGREE * max(1.0, float(own.abs().max())):
            got = "another shape" if again.shape != own.shape else f"{float((again - own).abs().max()):.3g} off"
            raise error(f"classify(parts(x)) of {model.spec}", "the model's output for x", got,
                        "Let forward(x) be classify(parts(x)), or explain the picture's boxes with a plain model")
        for i in range(len(batch)):
            if bool(own[i].isfinite().all() and found[i].isfinite().all()):
                names.append(batch.images[i].name)
                pictures.append(batch.hashes[i])
                labels.append(batch.truth[i])
                scores.append(found[i].detach())
                outputs.append(own[i].cpu())
            else:
                left.add(batch.images[i].name, "the model gives what is no finite number")
    return Told(names, pictures, labels, torch.stack(scores) if scores else torch.zeros(0, count),
                torch.stack(outputs) if outputs else torch.zeros(0, 0))


def from_scores(model: Model, said: Told, columns: Sequence[int], value: str, present: float, background: int,
                samples: int, drawn: Callable[[str], torch.Generator]) -> Iterable[Player]:
    """The players of all pictures: Shapley values of the classifier over part scores; a score that is taken out is
    averaged over those of `background` pictures."""
    n, f = said.scores.shape
    rows = torch.arange(n)
    if n > background:
        rows = torch.randperm(n, generator=drawn("background"))[:background].sort().values
    budget = 2**f - 2 if f <= EXACT else samples
    kind = model.head.kind
    with model.opened() as module, torch.no_grad():
        assert isinstance(module, PartModel)
        attr, spread = of_vectors(lambda parts: valued(module.classify(parts).float(), kind, value)[:, list(columns)],
                                  said.scores, said.scores[rows], max(2, budget),
                                  drawn("coalitions") if 2**f - 2 > budget else None)
    for i in range(n):
        yield Player(said.names[i], said.pictures[i], attr[i], spread[i], said.scores[i].cpu() >= present,
                     torch.ones(f, dtype=torch.bool), column(int(said.outputs[i].argmax()), columns),
                     column(class_of([said.labels[i]], model), columns))
