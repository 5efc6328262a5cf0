"""Where in the picture: what an attribution is, and the loop that fills one record a method from shared forwards."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from xai import health
from xai.analyzer import Analyzer, Maps, Progress, precision_name, reported
from xai.batch import Batch
from xai.errors import XaiError, error
from xai.evidence import NAMES, SAMPLE, Draft, Examiner, Found, apart, rivals, sample, work
from xai.model import Model
from xai.panels import AnyPanel, Heatmap, Text, View
from xai.pictures import picture_panels
from xai.provenance import peak_memory, provenance
from xai.result import Cost, Failure, ImageRecord, Result, Verdict
from xai.subject import Subject
from xai.targets import Bound, Target

FEW = 5  # steps of the cheaper form of a method that takes hundreds
DIVISORS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 50, 64, 100, 128, 256, 512)  # of the effort, for checks


@dataclass(frozen=True)
class Attribution(Analyzer):
    """Where in this image: one map a picture. `view`: what of the raw map the method shows (signed, relu, abs)."""

    needs: ClassVar[frozenset[str]] = frozenset({"gradients", "images"})
    view: ClassVar[View] = "signed"
    effort: ClassVar[tuple[str, ...]] = ("steps", "samples", "evaluations")  # parameters that a check may lessen
    lessens: ClassVar[bool] = True  # with less effort it is the same method, only noisier
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

    def divided(self, by: int) -> Attribution:
        """The same method with so many times less effort (steps or samples), for checks; itself where it has none to
        spare. Raises XaiError where that is no method."""
        least = {f.name: f.metadata.get("low") for f in dataclasses.fields(self) if f.name in self.effort and by > 1}
        less = {name: max(1 if low is None else int(low), getattr(self, name) // by) for name, low in least.items()}
        return dataclasses.replace(self, **less)

    def within(self, work: float, model: Model) -> Attribution | None:
        """The method with as much effort as costs at most so many forwards a map; None where the least costs more."""
        for by in DIVISORS:
            try:
                form = self.divided(by)
                if form.passes(model).work <= work:
                    return form
            except XaiError:
                continue
        return None

    def least(self, model: Model) -> float:
        """The least work that a map takes, in forwards; less than `passes` for one that may stop early."""
        return self.passes(model).work

    def spared(self, probe: Attribution) -> str:
        """A sentence that says what another form of the method does with less; "" where it is the method itself."""
        mine = self.parameters()
        less = [f"{name} {value}" for name, value in probe.parameters().items() if value != mine[name]]
        return f"Checked with {', '.join(less)}." if less else ""

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
class Made:
    """What a method made of one batch for one target, what was found when it was checked, and what that took."""

    bound: Bound
    maps: Maps
    evidence: Found
    cost: Cost


@dataclass
class Sheet:
    """What becomes the Result of one attribution on one model for one target, collected batch by batch.

    `problem` is the first XaiError, `lost` names the pictures that got no map for it, `hopeless` says that none will.
    """

    analyzer: Attribution
    model: Model
    target: Target
    examiner: Examiner
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
        """What one picture is planned to cost beyond the common forward, without its checks, in forwards."""
        try:
            return 0 if self.hopeless else self.analyzer.passes(self.model).work
        except XaiError:  # what stands in the way is told when the map is made
            return 0

    def check_work(self, targets: int, apart: bool) -> float:
        """The same of its checks, for all targets that are made with it."""
        try:
            return 0 if self.hopeless else work(self.analyzer, self.model, self.examiner.level, targets, apart)
        except XaiError:
            return 0

    def want(self, batch: Batch) -> None:
        """Ask the batch for the activations of the method's layers, before its one forward."""
        batch.want(*self.analyzer.layers())

    def add(self, batch: Batch, made: Made, common: Sequence[AnyPanel], shared_seconds: float) -> None:
        """Judge and keep the maps of one batch."""
        bound = made.bound
        values, errors = made.maps.values.detach().float().cpu(), made.maps.error
        panels = [*common, *made.maps.panels, *made.evidence.panels]
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
            verdicts += [v for v in made.evidence.verdicts if v.picture == digest]
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

    def _sampled(self) -> Iterator[AnyPanel]:
        checked = sum(any(v.name in NAMES for v in leaf.verdicts) for leaf in self.leaves)
        if checked < len(self.leaves) and self.examiner.apart and self.examiner.level != "off":
            yield Text(key="evidence", title="Which maps were checked", text=(
                f"A sample of {checked} of the {len(self.leaves)} maps, drawn by the seed; of the others only whether "
                "they are finite and not the same everywhere."))

    def result(self, command: str, seed: int) -> Result:
        """The record."""
        layer = self.analyzer.layers()
        a = self.analyzer
        return Result(
            analyzer=a.name(), version=a.version, title=a.title(), summary=a.section("Yields"),
            reference=a.section("Reference"), parameters=a.parameters(),
            models=(self.model.record(layer[0] if layer else None),), images=tuple(self.images),
            target=self.target.text, panels=(*(p for leaf in self.leaves for p in leaf.panels), *self._sampled()),
            verdicts=tuple(v for leaf in self.leaves for v in leaf.verdicts),
            cost=dataclasses.replace(self.cost, peak_memory=peak_memory()),
            provenance=provenance(command, seed, str(self.model.device), precision_name(self.model)))


def sheets_of(analyzers: Sequence[Attribution], subject: Subject) -> list[Sheet]:
    """An empty sheet for every method and target, in that order; one that the model cannot serve has its problem."""
    model = subject.one_model()
    examiner = Examiner(model, subject.evidence, subject.seed)
    sheets = [Sheet(analyzer, model, target, examiner) for analyzer in analyzers for target in subject.targets]
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
    groups, count = _groups([sheet for sheet in sheets if not sheet.hopeless]), len(images)
    planned = count * (1 + sum(group[0].work for group in groups)) + min(count, SAMPLE) * sum(
        group[0].check_work(len(group), count > SAMPLE and apart(group[0].analyzer)) for group in groups)
    checked, done = sample(len(images), subject.seed), 0
    for sheet in sheets:
        sheet.examiner.apart = checked is not None
    with reported([model], planned, progress):
        for batch in model.prepare(images, seed=subject.seed, memory_bytes=subject.memory_bytes, chunk=chunk, bad=bad):
            _one_batch(sheets, batch, frozenset(batch.hashes[i] for i in range(len(batch))
                                                if checked is None or done + i in checked))
            done += len(batch)
            if all(sheet.hopeless for sheet in sheets):
                break


def _one_batch(sheets: Sequence[Sheet], batch: Batch, checked: frozenset[str]) -> None:
    """Make and add the maps of a batch; `checked` holds the hashes of the pictures whose maps are checked."""
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
            _one_batch(left, one, checked)
        for sheet in left:
            sheet.hopeless = sheet.hopeless or (len(batch) > 1 and not sheet.leaves)
        return
    for group in _groups(left):
        if group[0].analyzer.singly and len(batch) > 1:
            lost = [sheet for one in batch.singles()
                    for sheet in _tried(group, one, common, shared / len(batch), checked)]
            for sheet in lost:
                sheet.hopeless = not sheet.leaves
            continue
        failed = _tried(group, batch, common, shared, checked)
        if failed and len(batch) > 1:
            for one in batch.singles():
                _tried(failed, one, common, 0.0, checked)
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


def _tried(group: Sequence[Sheet], batch: Batch, common: Sequence[AnyPanel], shared_seconds: float,
           checked: frozenset[str]) -> list[Sheet]:
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
        made = _made(fit[0], batch, [batch.bind(sheet.target) for sheet in fit], checked) if fit else []
    except XaiError as problem:
        if len(fit) > 1:  # one of the targets may be at fault
            alone = (_tried([sheet], batch, common, shared_seconds, checked) for sheet in fit)
            return [*failed, *(lost for one in alone for lost in one)]
        for sheet in fit:
            sheet.miss(batch, problem)
        return [*failed, *fit]
    for sheet, one in zip(fit, made, strict=True):
        sheet.add(batch, one, common, shared_seconds)
    if fit and fit[0].examiner.stopped is not None:
        raise fit[0].examiner.stopped
    return failed


def _made(sheet: Sheet, batch: Batch, bounds: Sequence[Bound], checked: frozenset[str]) -> list[Made]:
    """The maps of one method for one target, or for several that share its passes: each then states all of them."""
    analyzer, count, started = sheet.analyzer, batch.model.cost, time.perf_counter()
    before = (count.forwards, count.backwards)
    rows = [i for i, digest in enumerate(batch.hashes) if digest in checked]
    wanted = sheet.examiner.level != "off" and bool(rows)
    others = [rivals(batch, bound) if wanted else None for bound in bounds]
    beside = {i: other for i, other in enumerate(others) if other is not None and analyzer.shares}
    maps = analyzer.maps_for(batch, [*bounds, *beside.values()], (*range(len(bounds)), *beside))
    for one in maps:
        check_shape(analyzer, one.values, len(batch))
    middle, seconds = (count.forwards, count.backwards), time.perf_counter() - started
    evidence = [Found() for _ in bounds]
    if wanted:
        free = dict(zip(beside, maps[len(bounds):], strict=True))
        drafts = [Draft(bound, one.values.detach().float().cpu(), other,
                        free[i].values.detach().float().cpu() if i in free else None)
                  for i, (bound, one, other) in enumerate(zip(bounds, maps, others, strict=False))]
        spent = (middle[0] - before[0] + 2 * (middle[1] - before[1])) / len(batch)
        try:
            evidence = sheet.examiner.examine(analyzer, batch, drafts, rows, min(spent, analyzer.least(batch.model)))
        except KeyboardInterrupt as stop:  # the maps are there: they are kept, and then it stops
            sheet.examiner.stopped = stop
    cost = Cost(forwards=middle[0] - before[0], backwards=middle[1] - before[1], seconds=seconds,
                check_forwards=count.forwards - middle[0], check_backwards=count.backwards - middle[1])
    return [Made(bound, made, found, cost) for bound, made, found in zip(bounds, maps, evidence, strict=False)]


def check_shape(analyzer: Attribution, values: Tensor, count: int) -> None:
    """Raise XaiError where these are no maps (count, h, w)."""
    if values.ndim != 3 or len(values) != count or not values[0].numel():
        raise error(f"the maps of {analyzer.name()}", f"of shape ({count}, h, w), one a picture", tuple(values.shape),
                    "Tell the author of the method")


def _guarded(sheet: Sheet, act: Callable[..., None], *args: Any) -> None:
    if not sheet.hopeless:
        try:
            act(*args)
        except XaiError as problem:
            sheet.problem, sheet.hopeless = problem, True
