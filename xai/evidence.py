"""The evidence card: does a map change with the class and with the weights, is it faithful, is it stable?

What is checked of a map is planned beforehand, from the method's passes alone, so that a dry run can tell its price.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xai import health, seeds
from xai.batch import Batch
from xai.errors import XaiError, error
from xai.model import Model
from xai.panels import AnyPanel, Axis, Curve, View
from xai.randomized import parts_of, randomized, spread, stages
from xai.removal import curves, order
from xai.result import Verdict
from xai.sampler import Sampler
from xai.targets import Bound, of_classes

if TYPE_CHECKING:
    from xai.attribution import Attribution

LEVELS = ("off", "quick", "full")
QUICK = 32  # forwards that the quick card may take for a map, or half of the method's own work where that is more
PROBE = 128  # forwards of one map that is made for a check alone: more would only make it smoother
SAMPLE = 16  # maps of a model and method that are checked where there are more
SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7)  # of the pixels that the quick card removes
MANY_SHARES = tuple(k / 20 for k in range(1, 20))
NOISE = 0.03  # standard deviation of the noise that a stable map bears, in the input's max - min
ROLLED = 19  # the same map, moved: of 20 places the map's own is the best by chance in one case of 20
DRAWS = {"quick": 1, "full": 5}
STAGES = 6  # of the cascade that the full card runs through
NAMES = ("class-sensitive", "weight-dependent", "faithful beyond random", "stable")


@dataclass(frozen=True)
class Plan:
    """What is checked of each map, and with which form of the method; `probe` None: none is cheap enough, `why`."""

    level: str
    probe: Attribution | None
    why: str = ""
    rival: bool = False
    again: bool = False

    def passes(self, model: Model, shares: bool, targets: int = 1) -> tuple[int, int]:
        """(forwards, backwards) of one picture; for a method that shares its passes, of all its targets."""
        if self.level == "off":
            return 0, 0
        removed = 2 * len(SHARES) if self.level == "quick" else 2 * len(MANY_SHARES) + 2 * ROLLED * len(SHARES)
        forwards, backwards = targets * removed, 0
        if self.probe is not None:
            own, draws = self.probe.passes(model), DRAWS[self.level]
            fresh = draws + self._stages(model)  # batches of their own, with a common forward each
            maps = fresh + self.again + (self.rival and not shares)
            forwards += fresh + maps * round(own.forwards)
            backwards += maps * round(own.backwards)
        return forwards, backwards

    def _stages(self, model: Model) -> int:
        try:
            return len(cascade(model, self.level)) if "hooks" in model.capabilities else 0
        except XaiError:  # a network that cannot be copied, which the card says
            return 0


def check_level(level: str) -> None:
    """Raise XaiError for what is no level of evidence."""
    if level not in LEVELS:
        raise error("--evidence", f"one of {', '.join(LEVELS)}", repr(level), "quick is the default")


def cascade(model: Model, level: str) -> list[int]:
    """How many stages from the output on are drawn anew: the first that mixes channels and changes the output, which
    tells most; in the full card further ones after it, up to all. None where nothing changes it."""
    first = _first(model)
    more = spread(len(stages(model)), STAGES) if first and level == "full" else []
    return [first, *(count for count in more if count > first)] if first else []


_FIRST: weakref.WeakKeyDictionary[Model, int] = weakref.WeakKeyDictionary()


def _first(model: Model) -> int:
    """The fewest stages whose parameters, drawn anew, change the output, with a matrix among them (a scale of each
    class would only scale its map); 0: none do. One that runs last may lie beside the way to the output."""
    if model not in _FIRST:
        owned, x, tally = parts_of(model), model.example(), model.cost
        spent, told, tally.told = (tally.forwards, tally.backwards), tally.told, None  # a noise picture: nobody's
        shapes = {name: value.ndim for name, value in model.parameters()}
        was, found = model(x), 0
        for count, keys in enumerate(owned.values(), 1):
            now = randomized(model, tuple(owned)[:count], 0)(x)
            if any(shapes.get(key, 0) > 1 for key in keys) and not torch.allclose(now, was, rtol=1e-6, atol=0):
                found = count
                break
            was = now
        (tally.forwards, tally.backwards), tally.told = spent, told
        _FIRST[model] = found
    return _FIRST[model]


def plan(analyzer: Attribution, model: Model, level: str, classes: bool, spent: float) -> Plan:
    """What can be checked for the price: `spent` is the work of the method's own map, in forwards."""
    if level != "quick":
        return Plan(level, analyzer if level == "full" else None, rival=classes and level == "full")
    room = max(QUICK, spent / 2) - 2 * len(SHARES) - 2 - apart(analyzer)  # common forwards of the batches
    maps = 2 + (classes and not analyzer.shares)
    probe, again = analyzer.within(min(room / maps, PROBE), model), False
    if probe != analyzer:
        probe, again = analyzer.within(min(room / (maps + 1), PROBE), model), True
    why = "" if probe is not None else (
        f"another map costs {analyzer.passes(model).work:g} forwards, too many for the quick card")
    return Plan(level, probe, why, classes, again)


def apart(analyzer: Attribution) -> bool:
    """Whether a sample of a batch needs a forward of its own: to read layers."""
    return bool(analyzer.layers()) and not analyzer.singly


def work(analyzer: Attribution, model: Model, level: str, targets: int, alone: bool) -> float:
    """What checking one picture is planned to take, in forwards; alone: its batch is not the maps' own."""
    how = plan(analyzer, model, level, True, analyzer.least(model))
    forwards, backwards = how.passes(model, analyzer.shares, targets)
    return forwards + 2 * backwards + (alone and level != "off")


def rivals(batch: Batch, bound: Bound) -> Bound | None:
    """The best other class of each picture; None where that is meaningless."""
    output = batch.output()
    if bound.classes is None or output.ndim != 2 or output.shape[1] < 2:
        return None
    first, second = output.topk(2, 1).indices.T
    other = torch.where(first == bound.classes, second, first)
    return of_classes(other, tuple(batch.model.class_name(c) for c in other.tolist()))


@dataclass
class Found:
    """What the card says of one target: verdicts and panels, each naming its picture."""

    verdicts: list[Verdict] = field(default_factory=list)
    panels: list[AnyPanel] = field(default_factory=list)


@dataclass(frozen=True)
class Draft:
    """The maps (n, h, w) of one target, float32 on the CPU, and those for the class that it is compared with."""

    bound: Bound
    own: Tensor
    rival: Bound | None = None
    other: Tensor | None = None

    def choose(self, rows: Sequence[int]) -> Draft:
        """Of some of the pictures."""
        pick = list(rows)
        return Draft(self.bound.take(pick), self.own[pick], None if self.rival is None else self.rival.take(pick),
                     None if self.other is None else self.other[pick])


class Examiner:
    """Checks the maps of one model; keeps its randomised twins, so that all methods and batches share them."""

    def __init__(self, model: Model, level: str, seed: int) -> None:
        check_level(level)
        self.model, self.level, self.seed = model, level, seed
        self.stopped: KeyboardInterrupt | None = None
        self.apart = False  # only a sample is checked: in batches of its own
        self._twins: dict[int, Model] = {}

    def twin(self, count: int) -> Model:
        """The model with the parameters of its last `count` stages drawn anew."""
        if count not in self._twins:
            while len(self._twins) > 1:  # the first is asked for again and again, the others one after the other
                self._twins.pop(next(k for k in self._twins if k != next(iter(self._twins))))
            self._twins[count] = randomized(self.model, stages(self.model)[:count], self.seed)
        return self._twins[count]

    def examine(self, analyzer: Attribution, batch: Batch, made: Sequence[Draft], rows: Sequence[int],
                spent: float) -> list[Found]:
        """Check some of the pictures (`rows`) of maps that were made together for several targets; spent: what each
        picture's took, in forwards. What is found, for each target in order."""
        if len(rows) < len(batch) or (self.apart and not analyzer.singly):  # so that the price is as planned
            batch, made = batch.choose(rows, analyzer.layers()), [one.choose(rows) for one in made]
        how = plan(analyzer, self.model, self.level, any(one.rival is not None for one in made), spent)
        return _Card(self, analyzer, batch, list(made), how).found()


class _Card:
    """One method, one batch, some targets."""

    def __init__(self, examiner: Examiner, analyzer: Attribution, batch: Batch, made: list[Draft], plan: Plan) -> None:
        self.examiner, self.analyzer, self.batch, self.made, self.plan = examiner, analyzer, batch, made, plan
        self.bounds = [one.bound for one in made]
        self.how = analyzer.spared(plan.probe) if plan.probe is not None else ""
        self.view: View = analyzer.view
        self._own: list[Tensor] | XaiError | None = None

    def found(self) -> list[Found]:
        found = [Found() for _ in self.made]
        for name, check in zip(NAMES, (self._class, self._weights, self._faithful, self._stable), strict=True):
            try:
                for one, verdicts in zip(found, check(), strict=True):
                    one.verdicts += [v for v in verdicts if isinstance(v, Verdict)]
                    one.panels += [p for p in verdicts if not isinstance(p, Verdict)]
            except Exception as problem:  # whatever it is: a check must not cost a map
                for one in (one for one in found if not any(v.name == name for v in one.verdicts)):
                    one.verdicts += [health.unchecked(name, str(problem), digest) for digest in self.batch.hashes]
        return found

    def probed(self) -> list[Tensor]:
        """The maps of the cheaper form, of the pictures as they are."""
        if isinstance(self._own, XaiError):
            raise self._own
        if self._own is None:
            try:
                self._own = [one.own for one in self.made] if not self.plan.again else self._maps(self.batch)
            except XaiError as problem:
                self._own = problem
                raise
        return self._own

    def _maps(self, batch: Batch, bounds: Sequence[Bound] = ()) -> list[Tensor]:
        assert self.plan.probe is not None
        batch.output()  # asked in any case, so that the price does not depend on the method
        found = self.plan.probe.maps_for(batch, list(bounds or self.bounds))
        return [maps.values.detach().float().cpu() for maps in found]  # of another shape they cannot be compared

    def _class(self) -> Iterator[list[Verdict | AnyPanel]]:
        for one, own in zip(self.made, self.probed() if self._asks_again() else [m.own for m in self.made],
                            strict=True):
            if one.rival is None:
                yield []
                continue
            if one.other is None and self.plan.probe is None:
                yield self._unchecked(NAMES[0])
                continue
            other, mine = one.other, one.own
            if other is None:
                other, mine = self._maps(self.batch, [one.rival])[0], own
            yield [health.class_sensitive(mine[i], other[i], one.rival.names[i], digest, self.view,
                                          self.how if one.other is None else "")
                   for i, digest in enumerate(self.batch.hashes)]

    def _asks_again(self) -> bool:
        return self.plan.probe is not None and any(m.rival is not None and m.other is None for m in self.made)

    def _weights(self) -> Iterator[list[Verdict | AnyPanel]]:
        if self.plan.probe is None or "hooks" not in self.examiner.model.capabilities:
            why = "" if self.plan.probe is None else "the weights of this model cannot be drawn anew"
            yield from (self._unchecked(NAMES[1], why) for _ in self.made)
            return
        counts = cascade(self.batch.model, self.plan.level)
        if not counts:
            yield from (self._unchecked(NAMES[1], "drawing the weights anew does not change the output")
                        for _ in self.made)
            return
        blank = [self._maps(self.batch.like(model=self.examiner.twin(count))) for count in counts]
        for t, own in enumerate(self.probed()):
            alike = torch.tensor([[health.alike(own[i], maps[t][i], self.view) for maps in blank]
                                  for i in range(len(self.batch))])
            yield [*(health.weight_dependent(float(alike[i, 0]), digest, self.how)
                     for i, digest in enumerate(self.batch.hashes)),
                   *(self._cascade(counts, alike[i], digest) for i, digest in enumerate(self.batch.hashes)
                     if len(counts) > 1)]

    def _cascade(self, counts: Sequence[int], alike: Tensor, digest: str) -> Curve:
        return Curve(key="randomised", title="Likeness to the map of a network drawn anew from the output down",
                     picture=digest, x=torch.tensor([float(c) for c in counts]).numpy(), y=alike[None].float().numpy(),
                     names=("correlation",), axes=(Axis("stages drawn anew"), Axis("correlation")))

    def _faithful(self) -> Iterator[list[Verdict | AnyPanel]]:
        full = self.plan.level == "full"
        for one in self.made:
            said: list[Verdict | AnyPanel] = []
            for i, digest in enumerate(self.batch.hashes):
                probe = _Removal(self.batch, i, one, self.view)
                shares = MANY_SHARES if full else SHARES
                most, least, here = probe.curves(shares)
                said.append(probe.panel(shares, most, least, here, digest))
                few = [shares.index(min(shares, key=lambda s, q=q: abs(s - q))) for q in SHARES]  # type: ignore[misc]  # mypy on a bound default
                value = health.preference(most[few], least[few], here)
                rolled = [health.preference(*probe.curves(SHARES, k)) for k in range(1, ROLLED + 1)] if full else []
                said.append(health.faithful(value, rolled, digest))
            yield said

    def _stable(self) -> Iterator[list[Verdict | AnyPanel]]:
        if self.plan.probe is None:
            yield from (self._unchecked(NAMES[3]) for _ in self.made)
            return
        noisy = [self._maps(self.batch.like(inputs=self._noisy(k))) for k in range(DRAWS[self.plan.level])]
        for t, own in enumerate(self.probed()):
            yield [health.stable([health.alike(own[i], maps[t][i], self.view) for maps in noisy], NOISE, digest,
                                 self.how) for i, digest in enumerate(self.batch.hashes)]

    def _noisy(self, draw: int) -> Tensor:
        x = self.batch.inputs
        noise = torch.stack([torch.randn(x.shape[1:], generator=self.batch.generator(i, f"evidence {draw}"))
                             for i in range(len(x))]).to(x)
        return x + NOISE * (x.amax((1, 2, 3), True) - x.amin((1, 2, 3), True)) * noise

    def _unchecked(self, name: str, why: str = "") -> list[Verdict | AnyPanel]:
        advice = "" if why else "--evidence full checks it."
        return [health.unchecked(name, why or self.plan.why, digest, advice) for digest in self.batch.hashes]


class _Removal:
    """Removes pixels of one picture, the most relevant first and the least relevant first."""

    def __init__(self, batch: Batch, i: int, one: Draft, view: View) -> None:
        value = "log_odds" if one.bound.classes is not None and one.bound.versus is None else "logit"
        self.sampler = Sampler(batch, i, [one.bound], value)
        self.map = health.enlarged(one.own[i], view, batch.inputs.shape[-2:])
        self.batch, self.i = batch, i
        self.fill = self.sampler.baseline("zero", "the evidence card")

    def curves(self, shares: Sequence[float], rolled: int = 0) -> tuple[Tensor, Tensor, float]:
        """(scores, most relevant first), (least relevant first), the score of the picture as it is."""
        generator = self.batch.generator(self.i, f"evidence order {rolled}")
        values = self.map
        if rolled:
            height, width = values.shape
            down, right = (int(torch.randint(min(1, side - 1), side, (1,), generator=generator))
                           for side in (height, width))
            values = values.roll((down, right), (0, 1))
        first = order(values, generator)
        counts = [max(1, round(share * values.numel())) for share in shares]
        most, least = curves(self.sampler, [first, first.flip(0)], self.fill, counts)
        return most[:, 0], least[:, 0], float(self.sampler.here[0])

    def panel(self, shares: Sequence[float], most: Tensor, least: Tensor, here: float, digest: str) -> Curve:
        y = torch.stack([torch.cat([torch.tensor([here], dtype=torch.float64), line]) for line in (most, least)])
        return Curve(key="removal", title="What the score does as pixels are removed", picture=digest,
                     x=torch.tensor([0.0, *shares]).numpy(), y=y.float().numpy(),
                     names=("most relevant first", "least relevant first"),
                     axes=(Axis("share of the pixels removed"), Axis(f"score ({self.sampler.unit})")))


def sample(count: int, seed: int) -> set[int] | None:
    """The numbers of the pictures that are checked where there are more than SAMPLE; None: all are."""
    if count <= SAMPLE:
        return None
    drawn = torch.randperm(count, generator=seeds.generator(seed, "evidence"))[:SAMPLE]
    return set(drawn.tolist())
