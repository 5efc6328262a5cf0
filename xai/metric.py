"""Is the explanation true: what a metric is, and the loop that asks it about methods and about what knows nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from xai.analyzer import Analyzer, Passes
from xai.attribution import Attribution, check_shape
from xai.batch import Batch
from xai.controls import CONTROLS, Given, methods_of, named, problems_of
from xai.errors import XaiError, error
from xai.model import Model
from xai.panels import AnyPanel, Axis, Column, Curve, Matrix, Table, Text, shown
from xai.result import Verdict
from xai.statistics import interval
from xai.subject import Subject
from xai.targets import Bound, Target

GROUPS = ("Faithfulness", "Robustness", "Localisation", "Complexity", "Randomisation", "Axiomatic")  # Quantus' names
ROWS = 2000  # of the table by picture, at most: a page with more is slow to open
DRAWS = 1000  # of the bootstrap of a score of the whole set


@dataclass(frozen=True)
class Score:
    """What one number says, in a line, and whether "higher" or "lower" is better ("": neither); hits: it is 0 or 1."""

    says: str
    better: str = ""
    hits: bool = False


@dataclass(frozen=True)
class Case:
    """What a metric judges: the maps of one method for the pictures of a batch.

    raw: (n, h, w) float32 on the CPU, signed, as a record stores them (float16 steps of the maximum). shown: (n, H, W)
    float32 on the CPU, the method's view of them, enlarged bilinearly to the input's size; what is no number is 0.
    """

    batch: Batch
    bound: Bound
    method: Attribution
    raw: Tensor
    shown: Tensor

    def sound(self) -> Tensor:
        """(n,) bool: whether each map is finite and not the same everywhere, raw and as it is shown."""
        return sound(self.raw) & sound(self.shown)

    def order(self, i: int, metric: str) -> Tensor:
        """(H * W,) the pixels of picture i from the most relevant to the least; ties in a seeded random order."""
        from xai.removal import order

        return order(self.shown[i], self.batch.generator(i, metric))


@dataclass(frozen=True)
class Scored:
    """values: name -> (n,) float64, NaN where a picture has no score; traces: name -> (n, k), what is kept of each."""

    values: dict[str, Tensor]
    traces: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric(Analyzer):
    """Judges the maps of attributions, named in the field `of` that every metric declares.

    group: one of GROUPS. scores: every name that `score` or `pooled` gives; the first is the one that the verdict is
    about. curves: traces that are drawn, with their axes. worst: what a map scores that is not finite or the same
    everywhere. again: it runs the method again, so that a finished map is not
    enough. chance: whether a map that knows nothing of the network should lose.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"forward", "images"})
    shares: ClassVar[bool] = True  # only the first target is judged
    group: ClassVar[str] = "Faithfulness"
    scores: ClassVar[dict[str, Score]] = {}
    curves: ClassVar[dict[str, tuple[Axis, Axis]]] = {}
    worst: ClassVar[float] = math.nan
    again: ClassVar[bool] = False
    chance: ClassVar[bool] = True

    def score(self, case: Case) -> Scored:
        """Judge the maps of one batch."""
        raise error(f"the metric {self.name()}", "one with its own score", "an abstract one",
                    "Use one from `xai methods list`")

    def punished(self, name: str, values: Tensor, bad: Tensor) -> Tensor:
        """(n,) float64 on the CPU: one score, `worst` where the map is none; what has no score for another reason
        stays, and so does what is no judgement of the map where that is a number."""
        kept = values.detach().double().cpu().clone()
        if self.scores[name].better or math.isnan(self.worst):
            kept[bad & ~torch.isnan(kept)] = self.worst
        return kept

    def pooled(self, traces: dict[str, Tensor]) -> dict[str, float]:
        """Scores of the whole set, from the traces (N, k) of its pictures."""
        return {}

    def passes_for(self, model: Model, method: Attribution) -> Passes:
        """What judging one map costs, beyond making it and the common forward."""
        return Passes()

    def places(self, name: str, count: int) -> Tensor:
        """(count,) where the points of a trace lie on its x axis."""
        return torch.linspace(0, 1, count)

    def judged(self) -> tuple[Attribution, ...]:
        """The methods of the field `of`. Raises XaiError where it names none, or one that is no attribution."""
        return methods_of(getattr(self, "of", "gradcam"), self.again)

    def parameters(self) -> dict[str, Any]:
        """The fields as plain data."""
        given = super().parameters()
        return {**given, "of": given["of"] if isinstance(given["of"], str) else ",".join(map(named, self.judged()))}

    def passes(self, model: Model) -> Passes:
        """Of one picture: every method's map and its judgement, and the judgement of the controls."""
        problems = problems_of(self.judged(), model)
        fit = [one for one in self.judged() if one not in problems]
        rest = [one for one in CONTROLS if one not in fit]
        return total([*(one.passes(model) for one in fit), *(self.passes_for(model, one) for one in (*fit, *rest))])

    def check(self, model: Model) -> None:
        """Raise XaiError where the model cannot do what the metric or all of its methods need."""
        super().check(model)
        problems = problems_of(self.judged(), model)
        if len(problems) == len(self.judged()):
            raise next(iter(problems.values()))

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """Scores of every method and control, with intervals, differences, curves and verdicts."""
        model, images = subject.one_model(), subject.images
        if images is None:
            raise error("the pictures", "given for a metric", "none", "Name a picture, a folder or sample:chelsea")
        if len(subject.targets) > 1:
            raise several_targets(self.name(), len(subject.targets))
        for given in (one for one in self.judged() if isinstance(one, Given)):
            given.fits(images.names)
        ledger = Ledger(self, model, subject.targets[0])
        for batch in model.prepare(images, seed=subject.seed, memory_bytes=subject.memory_bytes):
            ledger.add(batch)
        ledger.settle()
        yield from ledger.panels(subject.seed)


@dataclass
class Tally:
    """What one method scored, picture by picture."""

    method: Attribution
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    traces: dict[str, list[Tensor]] = field(default_factory=dict)
    unsound: int = 0
    problem: XaiError | None = None

    def trace(self, name: str) -> Tensor:
        """(N, k) one trace of all pictures; curves of inputs of another size are drawn with as many points."""
        parts = self.traces[name]
        k = parts[0].shape[1]
        same = [one if one.shape[1] == k else F.interpolate(one[None], k, mode="linear", align_corners=True)[0]
                for one in parts]
        return torch.cat(same)

    def of(self, name: str) -> Tensor:
        """(N,) one score of all pictures."""
        return torch.cat(self.values[name]) if name in self.values else torch.empty(0, dtype=torch.float64)


class Ledger:
    """Collects the scores of a metric's methods and controls, batch by batch, and says what came of them."""

    def __init__(self, metric: Metric, model: Model, target: Target) -> None:
        self.metric, self.model, self.target = metric, model, target
        problems = problems_of(metric.judged(), model)
        self.tallies = [Tally(one, problem=problems.get(one)) for one in metric.judged()]
        self.tallies += [Tally(one) for one in CONTROLS if one not in metric.judged()]
        self.pictures: list[tuple[str, str]] = []

    def add(self, batch: Batch) -> None:
        """Judge the maps of one batch; a method that cannot make them keeps its problem, and the others go on."""
        for tally in self.tallies:
            if tally.problem is None:
                batch.want(*tally.method.layers())
        bound = batch.bind(self.target)
        self.pictures += [(image.name, name) for image, name in zip(batch.images, bound.names, strict=True)]
        for tally in self.tallies:
            if tally.problem is None:
                try:
                    self._judge(tally, batch, bound)
                except XaiError as problem:
                    if len([t for t in self.tallies if t.method not in CONTROLS]) == 1:
                        raise
                    tally.problem = problem

    def settle(self) -> None:
        """Forget what a method scored before it failed. Raises XaiError where every method that is judged has."""
        for tally in self.tallies:
            if tally.problem is not None:
                tally.values.clear()
                tally.traces.clear()
        judged = [tally for tally in self.tallies if tally.method in self.metric.judged()]
        if judged and all(tally.problem is not None for tally in judged):
            raise next(tally.problem for tally in judged if tally.problem is not None)

    def _judge(self, tally: Tally, batch: Batch, bound: Bound) -> None:
        case = case_of(tally.method, batch, bound)
        scored = self.metric.score(case)
        bad = ~case.sound()
        tally.unsound += int(bad.sum())
        for name, values in scored.values.items():
            kept = self.metric.punished(name, values, bad)
            tally.values.setdefault(name, []).append(kept)
        for name, trace in scored.traces.items():
            tally.traces.setdefault(name, []).append(trace.detach().double().cpu())

    def panels(self, seed: int) -> Iterator[AnyPanel | Verdict]:
        """Everything that the record says."""
        metric = self.metric
        rows = [row for tally in self.tallies for row in self._means(tally, seed)]
        if metric.needs & {"boxes", "masks"} and not any(row[5] and row[2] is not None for row in rows):
            raise error(f"the pictures for {metric.name()}", "ones of which boxes or masks are known", "none of them",
                        "Give a Parquet file with a column `box`, COCO, VOC or CSV annotations, or planted:500")
        said = "; ".join(f"{name}: {one.says}{f' ({one.better} is better)' if one.better else ''}"
                         for name, one in metric.scores.items())
        yield Table(key="scores", title=f"{metric.group}: means over {len(self.pictures)} pictures", rows=tuple(rows),
                    columns=(Column("method"), Column("score"), Column("mean"), Column("low"), Column("high"),
                             Column("pictures")),
                    note=f"{said}. Intervals of 95 %: bootstrap over pictures, Wilson's for hits and misses. "
                         f"Explained: {self.target.text}. random, centre and sobel know nothing of the network.")
        yield self._matrix(rows)
        against = [row for tally in self.tallies for row in self._against(tally, seed)]
        if against:
            yield Table(key="against", title="Against what knows nothing of the network", rows=tuple(against),
                        columns=(Column("method"), Column("score"), Column("control"), Column("difference"),
                                 Column("low"), Column("high"), Column("better")),
                        note="Mean difference on the same pictures, with its 95 % interval.")
        yield from self._curves(seed)
        yield from self._by_picture()
        yield from self._verdicts(against)
        yield from (Text(key=f"problem {tally.method.name()}", title=named(tally.method), tone="warning",
                         text=str(tally.problem)) for tally in self.tallies if tally.problem is not None)

    def _means(self, tally: Tally, seed: int) -> Iterator[tuple[Any, ...]]:
        label = named(tally.method)
        if tally.problem is not None:
            return
        for name in tally.values:
            known = tally.of(name)
            known = known[torch.isfinite(known)]
            low, high = interval(known, seed, self.metric.scores[name].hits)
            yield label, name, _plain(known.mean()), _plain(low), _plain(high), len(known)
        traces = {name: tally.trace(name) for name in tally.traces}
        whole = self.metric.pooled(traces)
        if whole:
            n = len(next(iter(traces.values())))
            draw = torch.Generator().manual_seed(seed)
            again = [self.metric.pooled({k: v[rows] for k, v in traces.items()}) for rows in
                     (torch.randint(n, (n,), generator=draw) for _ in range(DRAWS if n > 1 else 0))]
            n = int(torch.isfinite(next(iter(traces.values()))[:, 0]).sum())
            for name, value in whole.items():
                spread = torch.tensor([one[name] for one in again], dtype=torch.float64)
                ends = [float(spread.nanquantile(q)) for q in (0.025, 0.975)] if len(spread) else [math.nan] * 2
                yield label, name, _plain(value), _plain(ends[0]), _plain(ends[1]), n

    def _matrix(self, rows: Sequence[tuple[Any, ...]]) -> Matrix:
        methods, names = (tuple(dict.fromkeys(row[k] for row in rows)) for k in (0, 1))
        found = {(row[0], row[1]): row[2] for row in rows}
        values = torch.tensor([[math.nan if found.get((m, s)) is None else float(found[m, s]) for s in names]
                               for m in methods], dtype=torch.float32)
        return Matrix(key="means", title="The means at a glance", values=values.numpy(), rows=methods, columns=names,
                      axes=(Axis("method"), Axis("score")))

    def _against(self, tally: Tally, seed: int) -> Iterator[tuple[Any, ...]]:
        if tally.method in CONTROLS:
            return
        for name, what in self.metric.scores.items():
            if not what.better or name not in tally.values:
                continue
            for control in (t for t in self.tallies if t.method in CONTROLS and name in t.values):
                gap = tally.of(name) - control.of(name)
                gap = gap[torch.isfinite(gap)]
                low, high = interval(gap, seed)
                better = "" if math.isnan(low) else "yes" if (low > 0 if what.better == "higher" else high < 0) else \
                    "no" if (high < 0 if what.better == "higher" else low > 0) else "not shown"
                yield (named(tally.method), name, control.method.name(), _plain(gap.mean()), _plain(low), _plain(high),
                       better)

    def _curves(self, seed: int) -> Iterator[AnyPanel]:
        for name, axes in self.metric.curves.items():
            lines = [(named(t.method), t.trace(name)) for t in self.tallies if name in t.traces]
            if not lines:
                continue
            k = lines[0][1].shape[1]
            mean = torch.stack([values.nanmean(0) for _, values in lines])
            count = torch.stack([torch.isfinite(values).sum(0) for _, values in lines]).clamp_min(1)
            spread = torch.stack([(values - values.nanmean(0)).square().nanmean(0) for _, values in lines])
            wide = 1.96 * (spread / count).sqrt()
            yield Curve(key=name, title=name.replace("_", " "), x=self.metric.places(name, k).numpy(),
                        y=mean.float().numpy(), low=(mean - wide).float().numpy(), high=(mean + wide).float().numpy(),
                        names=tuple(label for label, _ in lines), axes=axes,
                        note="Means over the pictures; the bands are 1.96 standard errors wide on either side.")

    def _by_picture(self) -> Iterator[AnyPanel]:
        names = list(dict.fromkeys(name for tally in self.tallies for name in tally.values))
        rows = [(picture, target, named(tally.method), *(_plain(tally.of(name)[i]) for name in names))
                for i, (picture, target) in enumerate(self.pictures) for tally in self.tallies if tally.problem is None]
        if len(rows) > ROWS:
            yield Text(key="by_picture", title="Picture by picture", text=(
                f"{len(rows)} rows would be too many for a page; ask about fewer pictures to see them."))
        elif rows:
            yield Table(key="by_picture", title="Picture by picture", rows=tuple(rows),
                        columns=(Column("picture"), Column("explained"), Column("method"), *map(Column, names)))

    def _verdicts(self, against: Sequence[tuple[Any, ...]]) -> Iterator[Verdict]:
        first = next(iter(self.metric.scores), "")
        for tally in self.tallies:
            if tally.problem is not None or tally.method in CONTROLS:
                continue
            label, n = named(tally.method), len(self.pictures)
            known = int(torch.isfinite(tally.of(first)).sum()) if first in tally.values else n
            good = known == n and not tally.unsound
            yield Verdict(name="scored", value=float(known), threshold=float(n), passed=good, sentence=(
                f"All {n} maps of {label} have a score." if good else
                f"{label}: {known} of {n} pictures have a score; {tally.unsound} maps are not finite or flat."),
                advice="" if good else "Look at those pictures with `xai explain`; a mean over the others says less.")
            lost = [row for row in against if row[0] == label and row[1] == first and row[6] != "yes"]
            tried = [row for row in against if row[0] == label and row[1] == first and row[6]]
            if self.metric.chance and tried:
                worst = min(tried, key=lambda row: row[3] if self.metric.scores[first].better == "higher" else -row[3])
                yield Verdict(name="beats the controls", value=worst[3], threshold=0.0, passed=not lost, sentence=(
                    f"{label} scores better in {first} than random, centre and sobel do." if not lost else
                    f"{label} is not shown to score better in {first} than {', '.join(row[2] for row in lost)}."),
                    advice="" if not lost else "A map that does not beat these has shown nothing about the network; "
                                               "take more pictures, or another method.")


def case_of(method: Attribution, batch: Batch, bound: Bound) -> Case:
    """The maps of one method for a batch, as metrics judge them. Raises XaiError where they are no maps of it."""
    raw = method.maps(batch, bound).values.detach().float().cpu()
    check_shape(method, raw, len(batch))
    raw = as_stored(raw)
    seen = torch.from_numpy(shown(raw.nan_to_num(0, 0, 0).numpy(), method.view))
    size = batch.inputs.shape[-2:]
    large = F.interpolate(seen[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]
    return Case(batch, bound, method, raw, large if raw.shape[1:] != size else seen.float())


def as_stored(raw: Tensor) -> Tensor:
    """Maps (n, h, w) rounded to float16 steps of their own maximum, so that scores do not depend on whether a map comes
    from memory or from disk."""
    top = raw.nan_to_num(0, 0, 0).abs().amax((1, 2), keepdim=True)
    top = torch.where(top > 0, top, torch.ones_like(top))
    return (raw / top).half().float() * top


def sound(raw: Tensor) -> Tensor:
    """(n,) bool: whether each map is finite and not the same everywhere."""
    flat = raw.flatten(1)
    finite = torch.isfinite(flat).all(1)
    known = flat.nan_to_num(0, 0, 0)
    return finite & ((known.amax(1) - known.amin(1)) > 1e-6 * known.abs().amax(1))


def several_targets(name: str, count: int) -> XaiError:
    """The error for a metric that is asked about several targets at once."""
    return error(f"the target of {name}", "one", f"{count} at once", "Run it once for each")


def total(passes: Sequence[Passes]) -> Passes:
    """The sum of several."""
    return Passes(sum(one.forwards for one in passes), sum(one.backwards for one in passes))


def _plain(value: Tensor | float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
