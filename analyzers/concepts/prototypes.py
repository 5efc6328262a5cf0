"""Prototypes: a network that decides by likeness, explained by what it computes, and whether its prototypes are any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from analyzers.concepts._activations import numbered_batches
from analyzers.concepts._prototype_checks import (
    Reader,
    Reading,
    corruptions,
    duplicates,
    need_head,
    patch,
    purity,
    without,
)
from analyzers.concepts._prototype_panels import (
    Array,
    Found,
    class_table,
    evidence_table,
    heat_map,
    picture_of,
    sheet,
    told,
)
from xai.analyzer import Analyzer, param
from xai.batch import Batch
from xai.errors import XaiError, error
from xai.images import Images
from xai.model import Model
from xai.panels import AnyPanel, Cell, Column, Table
from xai.pictures import picture_panels
from xai.prototype_head import PrototypeHead, evidence, falling, nearest, own_classes
from xai.result import Cost, Verdict
from xai.statistics import wilson
from xai.streaming import Left
from xai.subject import Subject
from xai.targets import find_class

CLOSE = 1e-5  # of the largest logit: by how much the sum of the evidence may miss the network's own


@dataclass
class _All:
    """What is kept of every picture that could be read."""

    numbers: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    least: list[Tensor] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    labelled: bool = True
    off: float = 0.0
    finite: bool = True
    left: Left = field(default_factory=Left)


@dataclass
class _Trials:
    """What came of deleting patches and of corrupting pictures."""

    falls: list[bool] = field(default_factory=list)
    changes: dict[str, list[tuple[float, bool, bool]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Prototypes(Analyzer):
    """Prototypes: why a network that compares with prototypes said so, exactly as it computed it, and five checks.

    logit_c = sum_j s(d_j) W_jc, d_j the squared distance of the input's code to prototype j (the least over all cells),
    W the class table. s(d) = d in the prototype autoencoder of Li et al., where the most negative weight marks a
    prototype's class; s(d) = log((d + 1)/(d + eps)) in ProtoPNet. The terms are the explanation: they sum to the
    logit. The checks: purity (the share of a prototype's nearest pictures that are of its class), prototypes that are
    the same, the distance from a prototype to its nearest picture, what deleting the patch where a prototype is found
    does to it (it must get further), and how JPEG and noise move it. A network is asked through a small protocol,
    `xai.prototype_head.PrototypeHead`, that any module may fulfil.

    Reads     one model with a prototype head, images, their labels where they have any
    Yields    the prototypes decoded (or their nearest patches), the class table, what stands behind each prototype; for
              the first pictures the distances and what each prototype adds; the checks
    Raises    XaiError if no part of the network is a prototype head, or no picture can be read
    Cost      one forward a picture; for each explained one further ones: two for its page, `shown` for deletion, two
              for corruption; without a decoder one for each prototype. Of each picture the distances are kept
    Reference Li, Liu, Chen, Rudin 2018, "Deep Learning for Case-Based Reasoning through Prototypes", arXiv:1710.04806;
              Chen, Li, Tao, Barnett, Su, Rudin 2019, "This Looks Like That", arXiv:1806.10574
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradients", "hooks", "images", "prototypes"})
    upper: ClassVar[bool] = True
    shares: ClassVar[bool] = True

    pictures: int = param(8, "of how many pictures, the first, the decision is shown", low=1)
    shown: int = param(3, "nearest prototypes of a picture that are looked for in it", low=1)
    neighbours: int = param(10, "pictures nearest to a prototype that its purity is told by", low=1)
    alike: float = param(0.01, "prototypes are the same below this share of the median squared distance", low=0)
    jpeg: int = param(75, "quality of the JPEG that similarities are tried with", low=1, high=95)
    noise: float = param(0.05, "standard deviation of the noise they are tried with, of black to white", low=0)

    def check(self, model: Model) -> None:
        """Raise XaiError where no part of the network is a prototype head."""
        super().check(model)
        with model.opened() as module:
            need_head(model, module)

    def cost(self, subject: Subject) -> Cost:
        """One forward a picture, those of the explained ones, and where nothing is decoded one a prototype."""
        pictures, drawn = len(subject.images or ()), 0
        with subject.one_model().opened() as module:
            head = need_head(subject.one_model(), module)
            drawn = 0 if hasattr(head, "decode") else len(head.prototypes())
        return Cost(forwards=pictures + min(pictures, self.pictures) * (4 + self.shown) + drawn, backwards=0)

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """What all pictures say of the prototypes, then picture by picture."""
        model, images = subject.one_model(), subject.images
        if images is None or not len(images):
            raise error("the pictures", "given for prototypes", "none", "Name a folder with --data")
        every = _All()
        explained = [batch for batch, _ in numbered_batches(subject, images, Left(), self.pictures)]
        pages = [picture_panels(batch) for batch in explained]  # outside: a pass of an open network is counted by it
        with model.opened() as module:
            reader = Reader(model, module)
            self._read(subject, images, reader, every)
            if not every.least:
                raise XaiError(every.left.first)
            with torch.no_grad():
                found = self._found(model, reader.head, every)
                yield self._drawn(model, reader, images, every, found)
                yield class_table(found)
                yield from told(found, self.neighbours)
                trials = _Trials()
                for batch, page in zip(explained, pages, strict=True):
                    yield from self._explained(batch, page, reader, found, every, trials)
        yield from self._verdicts(every, found, trials)
        if every.left.pictures:
            yield every.left.panel()

    # --- all pictures ---
    def _read(self, subject: Subject, images: Images, reader: Reader, every: _All) -> None:
        for batch, numbers in numbered_batches(subject, images, every.left):
            reading, head = reader(batch.inputs), reader.head
            least = nearest(reading.distances)
            with torch.no_grad():
                summed = evidence(head, least).sum(1)
            every.off = max(every.off, _off(summed, reading.logits))
            every.finite &= bool(summed.isfinite().all())
            every.least.extend(least.double().cpu())
            every.names.extend(image.name for image in batch.images)
            every.numbers.extend(numbers)
            every.classes.extend(self._classes(batch, reading, every))

    def _classes(self, batch: Batch, reading: Reading, every: _All) -> list[int]:
        """The true classes, as far as the pictures say; else those that the network says."""
        said, count = reading.logits.argmax(1).tolist(), reading.logits.shape[1]
        found = []
        for truth, guess in zip(batch.truth, said, strict=True):
            text = f"class:{truth}" if isinstance(truth, int) else truth
            known = find_class(text, batch.model.labels, count) if text is not None else None
            every.labelled &= known is not None
            found.append(guess if known is None else known)
        return found

    def _found(self, model: Model, head: PrototypeHead, every: _All) -> Found:
        least, own = torch.stack(every.least), own_classes(head).cpu()
        near = least.min(0)
        pure = purity(least, torch.tensor(every.classes), own, self.neighbours)
        return Found(own.tolist(), head.class_table().detach().cpu(), falling(head, head.class_table()),
                     near.indices.tolist(), near.values.tolist(), pure.tolist(),
                     duplicates(head.prototypes(), self.alike), every.names, every.labelled, model.class_name)

    def _drawn(self, model: Model, reader: Reader, images: Images, every: _All, found: Found) -> AnyPanel:
        decode = getattr(reader.head, "decode", None)
        if callable(decode):
            pictures = model.preprocessing.undo(decode(reader.head.prototypes()).cpu().float())
            return sheet([picture_of(one) for one in pictures], found, "The prototypes, decoded",
                         "What the network's own decoder makes of each prototype.")
        return sheet([self._nearest_patch(model, reader, images, every.numbers[i], j)
                      for j, i in enumerate(found.nearest)], found, "The prototypes, as the nearest patches",
                     "This network has no decoder. Of the picture that is nearest to each prototype, what is nearest: "
                     "cells of the map made as large as the picture, not the field that the cell sees.")

    def _nearest_patch(self, model: Model, reader: Reader, images: Images, number: int, j: int) -> Array:
        batch = next(model.prepare(images[number : number + 1]))
        distances, seen = reader(batch.inputs).distances, batch.seen[0]
        if distances.ndim == 2:
            return seen
        x0, y0, x1, y1 = patch(distances[0, j], *seen.shape[:2])
        return seen[y0:y1, x0:x1]

    # --- picture by picture ---
    def _explained(self, batch: Batch, page: list[AnyPanel], reader: Reader, found: Found, every: _All,
                   trials: _Trials) -> Iterator[AnyPanel]:
        reading, head = reader(batch.inputs), reader.head
        every.off = max(every.off, _off(evidence(head, nearest(reading.distances)).sum(1), batch.output()))
        for i, picture in enumerate(batch.hashes):
            distances = reading.distances[i]
            least = nearest(distances[None])[0]
            yield from (panel for panel in page if panel.picture == picture)
            yield evidence_table(evidence(head, least[None])[0], least, head.similarities(least), reading.logits[i],
                                 found, picture)
            order = least.sort(stable=True).indices[: self.shown].tolist()
            sides = batch.inputs.shape[-2:]
            boxes = [patch(distances[j], *sides) if distances.ndim > 1 else (0, 0, sides[1], sides[0]) for j in order]
            for number, (j, box) in enumerate(zip(order, boxes, strict=True), 1):
                if distances[j].numel() > 1:
                    h, w = distances.shape[1:]
                    weighed = head.similarities(distances[j]) if found.falls else distances[j]
                    yield heat_map(distances[j], weighed, box, (w / sides[1], h / sides[0]), number, found.name(j),
                                   picture)
            self._deleted(batch.inputs[i], reader, order, boxes, least, trials)
            self._corrupted(batch, i, reader, least, reading.logits[i], trials)

    def _deleted(self, x: Tensor, reader: Reader, order: list[int], boxes: list[tuple[int, int, int, int]],
                 least: Tensor, trials: _Trials) -> None:
        hidden = torch.stack([without(x, box) for box in boxes])
        after = nearest(reader(hidden).distances)
        trials.falls += [bool(after[row, j] > least[j]) for row, j in enumerate(order)]

    def _corrupted(self, batch: Batch, i: int, reader: Reader, least: Tensor, logits: Tensor, trials: _Trials) -> None:
        j = int(least.argmin())
        for name, x in corruptions(batch, i, self.jpeg, self.noise).items():
            reading = reader(x[None])
            moved = nearest(reading.distances)[0]
            before, after = reader.head.similarities(torch.stack([least[j], moved[j]])).tolist()
            change = abs(after - before) / max(abs(before), 1e-12)
            trials.changes.setdefault(name, []).append(
                (change, int(moved.argmin()) == j, bool(reading.logits[0].argmax() == logits.argmax())))

    # --- what the checks found ---
    def _checks(self, every: _All, trials: _Trials) -> Iterator[AnyPanel | Verdict]:
        rows: list[tuple[Cell, ...]] = []
        for name, tried in trials.changes.items():
            change, same, class_ = (torch.tensor(one, dtype=torch.float64) for one in zip(*tried, strict=True))
            rows.append((name, len(tried), float(change.median()), float(same.mean()), float(class_.mean())))
        yield Table(key="robustness", title="How JPEG and noise move what is nearest", rows=tuple(rows),
                    columns=(Column("corruption"), Column("pictures"), Column("relative change, median"),
                             Column("same prototype nearest", "probability"), Column("same class", "probability")),
                    note="The change is that of what is weighted (similarity or distance) for the prototype that was "
                         "nearest.")
        yield _verdict("finite", None, None, every.finite, "What every prototype adds is a finite number."
                       if every.finite else "What a prototype adds is not a finite number.")
        exact = every.off <= CLOSE
        yield _verdict("exact", every.off, CLOSE, exact, "What the prototypes add sums to the network's logits, off by "
                       f"at most {every.off:.2g} of the largest.", "" if exact else "The head does more than the "
                       "protocol says: a bias, or a step after the class table")
        share, n = sum(trials.falls) / len(trials.falls), len(trials.falls)
        low, high = wilson(share, n)
        yield _verdict("deletion", share, 0.5, low > 0.5, "Where the patch of one of the nearest prototypes is "
                       f"deleted, the picture gets further from it in {100 * share:.0f} % of {n} trials (95 % interval "
                       f"{100 * low:.0f} to {100 * high:.0f}). Where a prototype has no place, the patch is the whole "
                       "picture.")

    def _verdicts(self, every: _All, found: Found, trials: _Trials) -> Iterator[AnyPanel | Verdict]:
        yield from self._checks(every, trials)
        alike = len(found.pairs)
        yield _verdict("no duplicates", alike, 0, not alike, "One pair of prototypes is the same." if alike == 1 else
                       f"{alike or 'No'} pairs of prototypes are the same.")
        chance = max(every.classes.count(c) for c in set(every.classes)) / len(every.classes)
        mean = sum(found.purity) / len(found.purity)
        yield _verdict("pure", mean, chance, mean > chance, "The pictures nearest to a prototype are of its class in "
                       f"{100 * mean:.0f} %; the most frequent class has {100 * chance:.0f} % of the pictures.")


def _verdict(name: str, value: float | None, threshold: float | None, passed: bool, sentence: str, advice: str = ""
             ) -> Verdict:
    return Verdict(name=name, value=value, threshold=threshold, passed=passed, sentence=sentence, advice=advice)


def _off(summed: Tensor, logits: Tensor) -> float:
    """The largest difference, as a share of the largest logit; infinite where they are not of one shape."""
    if summed.shape != logits.shape:
        return float("inf")
    return float((summed - logits).abs().max() / logits.abs().max().clamp_min(1e-12))
