"""Where in the picture: what an attribution is, and the loop that fills one record a method from shared forwards."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from xai import health
from xai.analyzer import Analyzer, Maps, Passes, Progress, precision_name, reported
from xai.batch import Batch
from xai.errors import XaiError, error
from xai.model import Model
from xai.panels import AnyPanel, Column, Heatmap, Mark, Picture, Table, View
from xai.provenance import peak_memory, provenance
from xai.result import Cost, Failure, ImageRecord, Result, Verdict
from xai.subject import Subject
from xai.targets import Bound, Target, of_classes

THUMBNAIL = 320  # pixels of the original's long side that the record keeps
CHECK = 32  # what the check of one map may cost, in forwards; a backward costs about two
FEW = 5  # steps or samples of a method's cheaper form: two maps of it cost no more than CHECK


@dataclass(frozen=True)
class Attribution(Analyzer):
    """Where in this image: one map a picture. `view`: what of the raw map the method shows (signed, relu, abs)."""

    needs: ClassVar[frozenset[str]] = frozenset({"gradients", "images"})
    view: ClassVar[View] = "signed"
    singly: ClassVar[bool] = False  # a picture fills forwards by itself: what is finished need not wait for a batch

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """The raw maps (n, h, w) of a batch."""
        if not self.shares:
            raise error(f"the method {self.name()}", "one with its own maps", "an abstract one",
                        "Use one from `xai methods list`")
        return self.maps_for(batch, [target])[0]

    def maps_for(self, batch: Batch, targets: Sequence[Bound], owners: Sequence[int] = ()) -> list[Maps]:
        """The maps for several targets; a method that `shares` writes this one, and makes them of the same passes.

        owners: for each target the number of the one that it is compared with, its own where it was asked for.
        """
        return [self.maps(batch, target) for target in targets]

    def layers(self) -> tuple[str, ...]:
        """The layers whose activations it reads, so that one forward serves all methods."""
        return (self.layer,) if hasattr(self, "layer") else ()

    def cheaper(self) -> Attribution:
        """The same method with fewer steps or samples, for checks; itself where it has none to spare."""
        if self.shares:
            return self
        names = {f.name for f in dataclasses.fields(self)} & {"steps", "samples"}
        return dataclasses.replace(self, **{name: min(getattr(self, name), FEW) for name in names})

    def spared(self) -> str:
        """A sentence that says what the cheaper form does with less; "" where it is the method itself."""
        cheaper = self.cheaper().parameters()
        less = [f"{cheaper[name]} {name}" for name, value in self.parameters().items() if cheaper[name] != value]
        return f"Both maps were made with {', '.join(less)}." if less else ""

    def check_passes(self, model: Model) -> Passes | None:
        """What the check by another class costs a picture: a map for that class and, if the cheaper form makes it, one
        for the class itself. None where that is more than CHECK."""
        if self.shares:
            return Passes()
        cheaper = self.cheaper()
        per, maps = cheaper.passes(model), 1 if cheaper == self else 2
        if maps * per.work > CHECK:
            return None
        return Passes(maps * per.forwards, maps * per.backwards)

    def __call__(self, subject: Subject, progress: Progress | None = None, command: str = "") -> Result:
        """Run on one model and pictures; with several targets, the first. Raises XaiError for bad input."""
        sheet = sheets_of([self], subject)[0]
        attribute([sheet], subject, progress)
        if sheet.problem is not None:
            raise sheet.problem
        return sheet.result(command, subject.seed)


@dataclass(frozen=True)
class Leaf:
    """One picture's share of a sheet."""

    image: ImageRecord
    panels: tuple[AnyPanel, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Rival:
    """Maps (n, h, w) for each picture's class and for the best other class, whose names these are."""

    own: Tensor
    other: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """What a method made of one batch for one target, and what that took."""

    bound: Bound
    maps: Maps
    rival: Rival | None
    cost: Cost


@dataclass
class Sheet:
    """What becomes the Result of one attribution on one model for one target, collected batch by batch.

    `problem` is the first XaiError, `lost` names the pictures that got no map for it, `hopeless` says that none will.
    """

    analyzer: Attribution
    model: Model
    target: Target
    leaves: list[Leaf] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    problem: XaiError | None = None
    hopeless: bool = False
    lost: list[str] = field(default_factory=list)

    @property
    def images(self) -> list[ImageRecord]:
        """The pictures that have a map."""
        return [leaf.image for leaf in self.leaves]

    @property
    def work(self) -> float:
        """What one picture is planned to cost beyond the common forward, with its check, in forwards."""
        try:
            check = None if self.hopeless else self.analyzer.check_passes(self.model)
            return 0 if self.hopeless else self.analyzer.passes(self.model).work + (check.work if check else 0)
        except XaiError:  # what stands in the way is told when the map is made
            return 0

    def want(self, batch: Batch) -> None:
        """Ask the batch for the activations of the method's layers, before its one forward."""
        batch.want(*self.analyzer.layers())

    def add(self, batch: Batch, made: Made, common: Sequence[AnyPanel], shared_seconds: float) -> None:
        """Judge and keep the maps of one batch."""
        bound, rival, how = made.bound, made.rival, self.analyzer.spared()
        values, errors = made.maps.values.detach().float().cpu(), made.maps.error
        panels = [*common, *made.maps.panels]
        leaves: list[Leaf] = []
        for i, (digest, image) in enumerate(zip(batch.hashes, batch.images, strict=True)):
            if bound.skip and bound.skip[i]:
                continue
            label = batch.truth[i]
            record = ImageRecord(name=image.name, hash=digest, size=image.size, target=bound.names[i],
                                 label=None if label is None else str(label))
            heat = Heatmap(
                key="map", title=f"{self.analyzer.title()}: {bound.names[i]}", picture=digest, values=values[i].numpy(),
                error=None if errors is None else errors[i].detach().float().cpu().numpy(), view=self.analyzer.view)
            verdicts = [health.finite(values[i], digest), health.varied(values[i], digest),
                        health.shown(values[i], self.analyzer.view, digest)]
            if rival is not None:
                verdicts.append(health.class_sensitive(rival.own[i], rival.other[i], rival.names[i], digest,
                                                       self.analyzer.view, how))
            beside = [p for p in panels if p.picture == digest]
            leaves.append(Leaf(record, (*beside, heat), tuple(v for v in verdicts if v is not None)))
        self.cost = dataclasses.replace(
            self.cost, seconds=self.cost.seconds + made.cost.seconds + shared_seconds,
            forwards=self.cost.forwards + made.cost.forwards + len(batch),
            backwards=self.cost.backwards + made.cost.backwards,
            check_forwards=self.cost.check_forwards + made.cost.check_forwards,
            check_backwards=self.cost.check_backwards + made.cost.check_backwards)
        self.leaves += leaves

    def miss(self, batch: Batch, problem: XaiError) -> None:
        """Note what came instead of a picture's map; a batch of several is asked again one by one and tells nothing."""
        if len(batch) == 1:
            self.problem = self.problem or problem
            self.lost.append(batch.images[0].name)

    def result(self, command: str, seed: int) -> Result:
        """The record."""
        layer = self.analyzer.layers()
        a = self.analyzer
        return Result(
            analyzer=a.name(), version=a.version, title=a.title(), summary=a.section("Yields"),
            reference=a.section("Reference"), parameters=a.parameters(),
            models=(self.model.record(layer[0] if layer else None),), images=tuple(self.images),
            target=self.target.text, panels=tuple(p for leaf in self.leaves for p in leaf.panels),
            verdicts=tuple(v for leaf in self.leaves for v in leaf.verdicts),
            cost=dataclasses.replace(self.cost, peak_memory=peak_memory()),
            provenance=provenance(command, seed, str(self.model.device), precision_name(self.model)))


def sheets_of(analyzers: Sequence[Attribution], subject: Subject) -> list[Sheet]:
    """An empty sheet for every method and target, in that order; one that the model cannot serve has its problem."""
    model = subject.one_model()
    sheets = [Sheet(analyzer, model, target) for analyzer in analyzers for target in subject.targets]
    for sheet in sheets:
        _guarded(sheet, sheet.analyzer.check, model)
    return sheets


@torch.inference_mode(False)  # what is made in the caller's would never take part in a gradient
def attribute(sheets: Sequence[Sheet], subject: Subject, progress: Progress | None = None,
              failures: list[Failure] | None = None, chunk: int | None = None) -> None:
    """Fill the sheets of several attributions on one model and its pictures, all served by one forward a batch.

    A method that raises XaiError keeps it as its sheet's `problem` and the others go on; it is asked again for each
    picture of that batch alone, so that what is lost does not depend on the batch. Bad pictures go to `failures`;
    without that list they raise. What the sheets hold is whole at any moment, also after Ctrl-C.
    """
    model, images = subject.one_model(), subject.images
    if images is None:
        raise error("the pictures", "given for an attribution", "none", "Name a picture, a folder or sample:chelsea")
    bad = None if failures is None else lambda name, said: failures.append(Failure(name=name, sentence=said))
    if all(sheet.hopeless for sheet in sheets):
        return
    work = sum(group[0].work if group[0].analyzer.shares else sum(sheet.work for sheet in group)
               for group in _groups([sheet for sheet in sheets if not sheet.hopeless]))
    with reported([model], len(images) * (1 + work), progress):
        for batch in model.prepare(images, seed=subject.seed, memory_bytes=subject.memory_bytes, chunk=chunk, bad=bad):
            _one_batch(sheets, batch)
            if all(sheet.hopeless for sheet in sheets):
                break


def _one_batch(sheets: Sequence[Sheet], batch: Batch) -> None:
    started = time.perf_counter()
    for sheet in sheets:
        _guarded(sheet, sheet.want, batch)
    left = [sheet for sheet in sheets if not sheet.hopeless]
    try:
        batch.output()
        common, shared = picture_panels(batch), time.perf_counter() - started
    except XaiError as problem:
        for sheet in left:
            sheet.miss(batch, problem)
        for one in batch.singles() if len(batch) > 1 else ():  # the batch may be too large, or spoilt by one picture
            _one_batch(left, one)
        for sheet in left:
            sheet.hopeless = sheet.hopeless or (len(batch) > 1 and not sheet.leaves)
        return
    for group in _groups(left):
        if group[0].analyzer.singly and len(batch) > 1:
            lost = [sheet for one in batch.singles() for sheet in _tried(group, one, common, shared / len(batch))]
            for sheet in lost:
                sheet.hopeless = not sheet.leaves
            continue
        failed = _tried(group, batch, common, shared)
        if failed and len(batch) > 1:
            for one in batch.singles():
                _tried(failed, one, common, 0.0)
            for sheet in failed:
                sheet.hopeless = not sheet.leaves  # where none of a batch gets a map, none will


def _groups(sheets: Sequence[Sheet]) -> list[list[Sheet]]:
    """The sheets that are made together: the targets of a method that shares its passes, every other one alone."""
    groups: list[list[Sheet]] = []
    for sheet in sheets:
        if sheet.analyzer.shares and groups and groups[-1][0].analyzer is sheet.analyzer:
            groups[-1].append(sheet)
        else:
            groups.append([sheet])
    return groups


def _tried(group: Sequence[Sheet], batch: Batch, common: Sequence[AnyPanel], shared_seconds: float) -> list[Sheet]:
    """Make the maps of a batch and add them; what an XaiError says is noted, and whose map it cost is returned.

    Nothing is kept of a batch that raises or is interrupted.
    """
    fit: list[Sheet] = []
    failed: list[Sheet] = []
    for sheet in group:
        try:
            batch.bind(sheet.target)
            fit.append(sheet)
        except XaiError as problem:
            sheet.miss(batch, problem)
            failed.append(sheet)
    try:
        made = _made(fit[0].analyzer, batch, [batch.bind(sheet.target) for sheet in fit]) if fit else []
    except XaiError as problem:
        if len(fit) > 1:  # one of the targets may be at fault
            return [*failed, *(lost for sheet in fit for lost in _tried([sheet], batch, common, shared_seconds))]
        for sheet in fit:
            sheet.miss(batch, problem)
        return [*failed, *fit]
    for sheet, one in zip(fit, made, strict=True):
        sheet.add(batch, one, common, shared_seconds)
    return failed


def _made(analyzer: Attribution, batch: Batch, bounds: Sequence[Bound]) -> list[Made]:
    """The maps of one method for one target, or for several that share its passes: each then states all of them."""
    count, started = batch.model.cost, time.perf_counter()
    before = (count.forwards, count.backwards)
    rivals = [_rival(analyzer, batch, bound) for bound in bounds]
    beside = {i: rival for i, rival in enumerate(rivals) if rival is not None and analyzer.shares}
    maps = analyzer.maps_for(batch, [*bounds, *beside.values()], (*range(len(bounds)), *beside))
    middle, seconds = (count.forwards, count.backwards), time.perf_counter() - started
    others = iter(maps[len(bounds):])
    found: list[Rival | None] = []
    for made, bound, rival in zip(maps, bounds, rivals, strict=False):
        own = made.values.detach().float().cpu()
        if rival is None:
            found.append(None)
        elif analyzer.shares:
            found.append(Rival(own, next(others).values.detach().float().cpu(), rival.names))
        else:
            found.append(_checked(analyzer, batch, bound, rival, own))
    cost = Cost(forwards=middle[0] - before[0], backwards=middle[1] - before[1], seconds=seconds,
                check_forwards=count.forwards - middle[0], check_backwards=count.backwards - middle[1])
    return [Made(bound, made, rival, cost) for bound, made, rival in zip(bounds, maps, found, strict=False)]


def _rival(analyzer: Attribution, batch: Batch, bound: Bound) -> Bound | None:
    """The best other class of each picture; None where that is meaningless or its map too dear."""
    output = batch.output()
    if bound.classes is None or output.ndim != 2 or output.shape[1] < 2 or analyzer.check_passes(batch.model) is None:
        return None
    first, second = output.topk(2, 1).indices.T
    other = torch.where(first == bound.classes, second, first)
    return of_classes(other, tuple(batch.model.class_name(c) for c in other.tolist()))


def _checked(analyzer: Attribution, batch: Batch, bound: Bound, rival: Bound, own: Tensor) -> Rival | None:
    """Both maps in the method's cheaper form where it has one; None where no map comes of it: the map itself is there,
    and goes without this check."""
    cheaper = analyzer.cheaper()
    try:
        if cheaper != analyzer:
            own = cheaper.maps(batch, bound).values.detach().float().cpu()
        return Rival(own, cheaper.maps(batch, rival).values.detach().float().cpu(), rival.names)
    except XaiError:
        return None


def _guarded(sheet: Sheet, act: Callable[..., None], *args: Any) -> None:
    if not sheet.hopeless:
        try:
            act(*args)
        except XaiError as problem:
            sheet.problem, sheet.hopeless = problem, True


def picture_panels(batch: Batch) -> list[AnyPanel]:
    """The original with the outline of what the network saw, what it saw, and what it said: of every picture."""
    panels: list[AnyPanel] = []
    output = batch.output()
    scores = batch.scores() if output.ndim == 2 and output.shape[1] > 1 else None
    for i, (image, digest) in enumerate(zip(batch.images, batch.hashes, strict=True)):
        small = image.thumbnail(THUMBNAIL)
        ratio = small.shape[1] / image.size[1]
        corners = batch.frames[i].box(*batch.seen[i].shape[:2])
        box = Mark("box", tuple((x * ratio, y * ratio) for x, y in corners), "what the network saw")
        panels.append(Picture(key="original", title=image.name, picture=digest, pixels=small,
                              note=f"{image.size[1]} x {image.size[0]}", marks=(box,)))
        panels.append(Picture(key="seen", title="what the network saw", picture=digest, pixels=batch.seen[i]))
        if scores is not None:
            panels.append(_predictions(scores[i], batch.model.class_name, digest))
    return panels


def _predictions(scores: Tensor, names: Callable[[int], str], digest: str) -> Table:
    top = torch.topk(scores, min(5, len(scores)))
    rows = tuple((names(c), round(p, 6))
                 for c, p in zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Table(key="predictions", title="What the model says", picture=digest, rows=rows,
                 columns=(Column("class"), Column("probability", "probability")))
