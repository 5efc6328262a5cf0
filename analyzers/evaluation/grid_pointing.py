"""Grid pointing: on pictures made of several photographs, whether a map finds the one that its class comes from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from analyzers.evaluation._regions import share
from xai import seeds
from xai.analyzer import Analyzer, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.controls import CONTROLS, Control, Given, methods_of, named, problems_of
from xai.errors import XaiError, error
from xai.images import Image, Images
from xai.metric import case_of, total
from xai.model import Model
from xai.panels import AnyPanel, Axis, Column, Matrix, Picture, Table, Text
from xai.result import Verdict
from xai.statistics import interval
from xai.subject import Subject
from xai.targets import of_classes

FULL = "difull"


@dataclass(frozen=True)
class Cell:
    """A photograph that may fill a cell: its number in the collection and its predicted class."""

    number: int
    kind: int


@dataclass
class Marks:
    """What one method scored, (grids, heads) once all are in; what it told instead."""

    method: Attribution
    found: list[list[float]] = field(default_factory=list)
    problem: XaiError | None = None

    @property
    def values(self) -> Tensor:
        """(grids, heads)."""
        return torch.tensor(self.found, dtype=torch.float64)


class Alone(nn.Module):
    """A network that sees one cell of a grid and nothing else, so that all that lies outside is wrong for certain."""

    def __init__(self, inner: nn.Module, row: int, column: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.inner, self.row, self.column, self.size = inner, row, column, size

    def forward(self, x: Tensor) -> Tensor:
        """What the network says of cell (row, column) of x (n, C, side * h, side * w)."""
        h, w = self.size
        found: Tensor = self.inner(x[:, :, self.row * h : (self.row + 1) * h, self.column * w : (self.column + 1) * w])
        return found


@dataclass(frozen=True)
class GridPointing(Analyzer):
    """Grid pointing game: whether a map finds, among several photographs, the one that its class comes from.

    side x side photographs of different predicted classes, each predicted with at least `confidence`, are put into one
    input, each at the model's own size. For each cell its class is explained; score = sum of max(M, 0) inside the
    cell / sum of max(M, 0), the view M enlarged bilinearly; 0 where nothing is positive, the map is not finite or the
    same everywhere. Chance is 1 / side^2. gridpg: the network sees the whole grid, so that it must take inputs of that
    size (fully convolutional, or pooled adaptively); nothing keeps it from using the other cells. difull: the head
    sees one cell alone, so that whatever is positive elsewhere is wrong for certain; gradients of the input score
    exactly 1. As published, difull judges the first and the last cell only. Methods that read a layer are left out
    there: the layer shows one cell, not the grid. There are at most as many grids as pictures.

    Reads     one model that tells classes, images (several, of at least side^2 predicted classes); no labels
    Yields    the mean score of every method and control with 95 % intervals over grids, by cell, and a grid
    Raises    XaiError if the model holds no classes, cannot run a grid, or every method fails
    Cost      one forward a picture; for each grid one more, and its maps for side^2 cells (difull: 2 cells)
    Reference Rao, Boehle, Schiele 2022, "Towards better understanding attribution methods", arXiv:2205.10435
    """

    needs = frozenset({"forward", "images"})
    shares: ClassVar[bool] = True  # the classes are those of the cells
    upper: ClassVar[bool] = True  # how many pictures are predicted surely is not known before

    of: str = param("gradcam", "attribution that is judged, or several separated by commas; parameters as "
                               "smoothgrad(samples=20)")
    setting: str = param("gridpg", "gridpg: the network sees the grid; difull: each head sees its own cell alone",
                         choices=("gridpg", FULL))
    side: int = param(2, "photographs in a row and in a column", low=2, high=5)
    grids: int = param(200, "how many grids", low=2)
    confidence: float = param(0.99, "least probability of a photograph's predicted class", low=0, high=1)

    def judged(self) -> tuple[Attribution, ...]:
        """The methods of the field `of`. Raises XaiError where it names none, or finished maps."""
        return methods_of(self.of, again=True)

    def heads(self) -> tuple[int, ...]:
        """The cells that are explained, in reading order."""
        return (0, self.side**2 - 1) if self.setting == FULL else tuple(range(self.side**2))

    def check(self, model: Model) -> None:
        """Raise XaiError where the model cannot do what this and the methods need."""
        super().check(model)
        problems = problems_of(self.judged(), model)
        if len(problems) == len(self.judged()):
            raise next(iter(problems.values()))
        if self.setting == FULL:
            model.need("gradients")

    def passes(self, model: Model) -> Passes:
        """The most for one picture: a grid for each."""
        problems = problems_of(self.judged(), model)
        each = total([method.passes(model) for method in self.judged() if method not in problems])
        many, commons = len(self.heads()), len(self.heads()) if self.setting == FULL else 1
        return Passes(commons + many * each.forwards, many * each.backwards)

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """The scores of every method and control."""
        model, images = subject.one_model(), subject.images
        if images is None:
            raise error("the pictures", "given for grids", "none", "Name a folder with --data")
        cells = self._cells(model, subject, images)
        drawn = self._drawn(cells, subject.seed, len(images))
        problems = problems_of(self.judged(), model)
        marks = [Marks(one, problem=problems.get(one))
                 for one in (*self.judged(), *(c for c in CONTROLS if c not in self.judged()))]
        if drawn:
            chunk = max(1, model.chunk(subject.memory_bytes) // self.side**2)
            for first in range(0, len(drawn), chunk):
                self._judge(marks, model, images, drawn[first : first + chunk], subject)
            yield self._picture(model, images, drawn[0])
        else:
            kinds = len({cell.kind for cell in cells})
            yield Text(key="too few", title="No grid could be made", tone="warning", text=(
                f"A grid needs photographs of {self.side**2} predicted classes, each with a probability of at least "
                f"{self.confidence:g}; there are {len(cells)} of {kinds}. Give more pictures, or a lower confidence."))
        yield from self._told(marks, len(drawn), subject.seed)

    # --- grids ---
    def _cells(self, model: Model, subject: Subject, images: Images) -> list[Cell]:
        """The photographs that are predicted surely enough."""
        found: list[Cell] = []
        number = 0
        for batch in model.prepare(images, seed=subject.seed, memory_bytes=subject.memory_bytes):
            output = batch.output()
            if output.ndim != 2 or model.head.kind != "classes":
                raise error("the model", "one that tells classes, for grids of them", f"a head of {model.head.kind}",
                            "Take an image classifier")
            sure, kind = batch.scores().max(1)
            found += [Cell(number + i, int(kind[i])) for i in range(len(batch)) if float(sure[i]) >= self.confidence]
            number += len(batch)
        return found

    def _drawn(self, cells: Sequence[Cell], seed: int, most: int) -> list[list[Cell]]:
        """Grids of photographs of different classes, at random; none where the classes are too few."""
        groups: dict[int, list[Cell]] = {}
        for cell in cells:
            groups.setdefault(cell.kind, []).append(cell)
        kinds = sorted(groups)
        if len(kinds) < self.side**2:
            return []
        draw = seeds.generator(seed, self.name())

        def one() -> list[Cell]:
            chosen = torch.randperm(len(kinds), generator=draw)[: self.side**2].tolist()
            return [groups[kinds[k]][int(torch.randint(len(groups[kinds[k]]), (1,), generator=draw))] for k in chosen]

        return [one() for _ in range(min(self.grids, most))]

    def _grid(self, model: Model, images: Images, cells: Sequence[Cell], number: int = 0) -> Image:
        """One input of side x side photographs, each as the network takes it."""
        parts = [model.preprocessing(images[cell.number]).input for cell in cells]
        rows = [torch.cat(parts[k : k + self.side], 2) for k in range(0, len(parts), self.side)]
        return Image.of(f"grid {number}", torch.cat(rows, 1).numpy().astype(np.float32), normalised=True)

    def _picture(self, model: Model, images: Images, cells: Sequence[Cell]) -> Picture:
        seen = model.preprocessing(self._grid(model, images, cells)).seen
        names = ", ".join(model.class_name(cell.kind) for cell in cells)
        return Picture(key="grid", title="The first grid", pixels=seen, note=f"In reading order: {names}.")

    # --- scores ---
    def _judge(self, marks: Sequence[Marks], model: Model, images: Images, drawn: Sequence[Sequence[Cell]],
               subject: Subject) -> None:
        pictures = Images.of([self._grid(model, images, cells, k) for k, cells in enumerate(drawn)])
        size = model.preprocessing.size
        rows: dict[int, list[list[float]]] = {id(mark): [[] for _ in drawn] for mark in marks}
        shared: Batch | None = None
        for head in self.heads():
            with self._seeing(model, head) as seer:
                if shared is None or self.setting == FULL:
                    shared = self._batch(seer, pictures, marks, subject)
                kinds = torch.tensor([cells[head].kind for cells in drawn], device=shared.inputs.device)
                bound = of_classes(kinds, tuple(map(model.class_name, kinds.tolist())))
                region = torch.zeros(shared.inputs.shape[-2:], dtype=torch.bool)
                row, column = divmod(head, self.side)
                region[row * size[0] : (row + 1) * size[0], column * size[1] : (column + 1) * size[1]] = True
                for mark in marks:
                    try:
                        self._fits(mark)
                        case = case_of(mark.method, shared, bound)
                    except XaiError as problem:
                        mark.problem = mark.problem or problem
                        continue
                    for k, good in enumerate(case.sound().tolist()):
                        rows[id(mark)][k].append(share(case.shown[k], region) if good else 0.0)
        for mark in marks:
            if mark.problem is None:
                mark.found += rows[id(mark)]
            else:
                mark.found.clear()
        if all(mark.problem is not None for mark in marks if not isinstance(mark.method, Control)):
            raise next(mark.problem for mark in marks if mark.problem is not None)

    def _fits(self, mark: Marks) -> None:
        if mark.problem is not None:
            raise mark.problem
        if self.setting == FULL and (mark.method.layers() or "attention" in mark.method.needs):
            raise error(f"what difull judges, {named(mark.method)}", "a method that does not read a layer",
                        "one that does: the layer shows one cell alone", "Take setting=gridpg")

    @contextlib.contextmanager
    def _seeing(self, model: Model, head: int) -> Iterator[Model]:
        """The model itself, or one that sees that cell alone, whose passes count as the model's."""
        if self.setting != FULL:
            yield model
            return
        row, column = divmod(head, self.side)
        height, width = model.preprocessing.size
        whole = model.preprocessing.with_options(size=(height * self.side, width * self.side))
        with model.opened() as module:  # closed again before it is run: what runs is a model of its own, which counts
            alone = Model(Alone(module, row, column, (height, width)), preprocessing=whole, labels=model.labels,
                          spec=model.spec, head=model.options["head"], output=model.options["output"])
        try:
            yield alone
        finally:
            model.cost.add(alone.cost.forwards, alone.cost.backwards)

    def _batch(self, seer: Model, pictures: Images, marks: Sequence[Marks], subject: Subject) -> Batch:
        """The grids as one batch that the model can run."""
        batch = next(seer.prepare(pictures, seed=subject.seed, memory_bytes=subject.memory_bytes, chunk=len(pictures)))
        try:
            for mark in marks:
                if mark.problem is None and self.setting != FULL:
                    batch.want(*mark.method.layers())
            batch.output()
        except XaiError as problem:
            height, width = (int(side) for side in batch.inputs.shape[-2:])
            raise error("the model", f"one that can run a grid of {height} x {width} pixels", str(problem),
                        "Take a fully convolutional or adaptively pooled network, or setting=difull") from problem
        return batch

    # --- what is told ---
    def _told(self, marks: Sequence[Marks], count: int, seed: int) -> Iterator[AnyPanel | Verdict]:
        rows, against = [], []
        for mark in marks:
            values = mark.values.mean(1) if mark.found else torch.empty(0, dtype=torch.float64)
            low, high = interval(values, seed)
            rows.append((named(mark.method), *_plain(values, low, high), len(values)))
            if isinstance(mark.method, Control) and not isinstance(mark.method, Given):
                continue
            for control in (m for m in marks if m.method in CONTROLS and m.found and mark.found):
                gap = values - control.values.mean(1)
                low, high = interval(gap, seed)
                against.append((named(mark.method), control.method.name(), *_plain(gap, low, high)))
        yield Table(key="scores", title=f"Localisation: means over {count} grids", rows=tuple(rows),
                    columns=(Column("method"), Column("mean"), Column("low"), Column("high"), Column("grids")),
                    note=f"Share of the positive attribution in the right cell; chance {1 / self.side**2:.3g}. "
                         "Intervals of 95 %: bootstrap over grids. random, centre and sobel know nothing of the "
                         "network.")
        heads = tuple(f"cell {head + 1}" for head in self.heads())
        means = torch.stack([mark.values.mean(0) if mark.found else torch.full((len(heads),), torch.nan).double()
                             for mark in marks])
        yield Matrix(key="cells", title="The means by cell, in reading order", values=means.float().numpy(),
                     rows=tuple(named(mark.method) for mark in marks), columns=heads,
                     axes=(Axis("method"), Axis("cell")))
        if against:
            yield Table(key="against", title="Against what knows nothing of the network", rows=tuple(against),
                        columns=(Column("method"), Column("control"), Column("difference"), Column("low"),
                                 Column("high")), note="Mean difference on the same grids, with its 95 % interval.")
        yield from (Text(key=f"problem {mark.method.name()}", title=named(mark.method), tone="warning",
                         text=str(mark.problem)) for mark in marks if mark.problem is not None)
        yield from self._verdicts(marks, against, count)

    def _verdicts(self, marks: Sequence[Marks], against: Sequence[tuple[str, str, float | None, float | None,
                                                                       float | None]], count: int) -> Iterator[Verdict]:
        for mark in (m for m in marks if not isinstance(m.method, Control)):
            label = named(mark.method)
            yield Verdict(name="scored", value=float(len(mark.found)), threshold=float(max(1, count)),
                          passed=bool(mark.found), sentence=f"{label} has a score on {len(mark.found)} grids.",
                          advice="" if mark.found else "Give more pictures, or a lower confidence.")
            own = [row for row in against if row[0] == label and row[3] is not None]
            lost = [row[1] for row in own if row[3] is not None and row[3] <= 0]
            if own:
                least = min(row[2] for row in own if row[2] is not None)
                yield Verdict(name="beats the controls", value=least, threshold=0.0, passed=not lost, sentence=(
                    f"{label} is not shown to find the right cell better than {', '.join(lost)}." if lost else
                    f"{label} finds the right cell better than random, centre and sobel do."),
                    advice="A map that does not beat these has shown nothing about the network; take more grids, or "
                           "another method." if lost else "")


def _plain(values: Tensor, low: float, high: float) -> tuple[float | None, float | None, float | None]:
    """The mean and its interval; None for what is no number."""
    mean = float(values.mean()) if len(values) else math.nan
    return (mean if math.isfinite(mean) else None, low if math.isfinite(low) else None,
            high if math.isfinite(high) else None)
