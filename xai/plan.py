"""What a run would do and cost, before it is done."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from xai import evidence
from xai.analyzer import Analyzer, Passes
from xai.ask import Ask, analyzers_of, pictures_of, sorted_out, targets_of
from xai.attribution import Attribution
from xai.batch import Batch
from xai.errors import XaiError, error
from xai.evidence import rivals
from xai.model import Model
from xai.result import Failure
from xai.subject import Subject
from xai.targets import Target


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One line of a plan: what it is and what it will cost, in passes over one picture each; `checks`: both kinds, for
    the health checks; `at_most`: the forwards are an upper bound."""

    model: str
    method: str
    target: str = ""
    pictures: int = 0
    forwards: int = 0
    backwards: int = 0
    checks: int = 0
    at_most: bool = False


@dataclass(frozen=True)
class Plan:
    """The lines of a plan, and what could not be done."""

    rows: list[PlanRow] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def plan(ask: Ask) -> Plan:
    """What `run` would do and cost.

    Loads the models, looks at the pictures, asks the resolver, and runs one forward of the first picture, to see
    whether the targets fit. Raises XaiError where nothing could be done.
    """
    found = Plan()
    analyzers = analyzers_of(ask)
    targets = targets_of(ask, analyzers)
    images = sorted_out(pictures_of(ask), found.failures)
    if not isinstance(analyzers[0], Attribution):
        models = tuple(ask.model(i) for i in range(len(ask.models)))
        found.rows.extend(_whole(analyzers[0], Subject(models, images, targets, ask.seed, ask.memory_bytes)))
        return found
    alone = len(ask.models) * len(analyzers) * len(targets) == 1
    for i in range(len(ask.models)):
        try:
            model = ask.model(i)
            batch = next(model.prepare(images[:1])) if images is not None else None
        except XaiError as problem:
            if len(ask.models) < 2:
                raise
            found.failures.append(Failure(name=str(ask.models[i]), sentence=str(problem)))
            continue
        n = len(images) if images is not None else 0
        rows = [PlanRow(model=model.spec, method="(shared forward)", pictures=n, forwards=n)]
        for analyzer, target in itertools.product(analyzers, targets):
            try:
                rows.append(_row(analyzer, target, model, batch, n, targets, ask.evidence))
            except XaiError as problem:
                if alone:
                    raise
                found.failures.append(Failure(name=f"{analyzer.name()} on {model.spec}", sentence=str(problem)))
        found.rows.extend(rows if len(rows) > 1 else [])
    if not found.rows and found.failures:
        raise XaiError(found.failures[0].sentence)
    return found


def _whole(analyzer: Analyzer, subject: Subject) -> list[PlanRow]:
    """Of what looks at all models and pictures at once: the common forward of each, and the rest."""
    if not subject.models and analyzer.needs & {"forward", "gradients", "hooks", "weights"}:
        raise error("the model", f"named for {analyzer.name()}", "none", "Name one with --model")
    for model in subject.models:
        analyzer.check(model)
        if subject.images is not None:
            next(model.prepare(subject.images[:1]))
    cost, pictures = analyzer.cost(subject), len(subject.images or ())
    shared = min(cost.forwards, pictures * len(subject.models))
    name = ", ".join(model.spec for model in subject.models)
    first = [PlanRow(model=name, method="(shared forward)", pictures=pictures, forwards=shared)] if shared else []
    return [*first, PlanRow(model=name, method=analyzer.name(), target=subject.targets[0].text, pictures=pictures,
                            forwards=cost.forwards - shared, backwards=cost.backwards,
                            at_most=analyzer.upper and cost.forwards > shared)]


def _row(analyzer: Analyzer, target: Target, model: Model, batch: Batch | None, n: int, targets: Sequence[Target],
         level: str) -> PlanRow:
    analyzer.check(model)
    first = target is targets[0]
    checks = 0
    if isinstance(analyzer, Attribution) and batch is not None:
        batch.want(*analyzer.layers())
        if first or not analyzer.shares:
            asked = [rivals(batch, batch.bind(one)) is not None for one in (targets if analyzer.shares else [target])]
            how = evidence.plan(analyzer, model, level, any(asked), analyzer.least(model))
            # what is sampled may have a common forward of its own
            apart = level != "off" and n > evidence.SAMPLE and evidence.apart(analyzer)
            checks = min(n, evidence.SAMPLE) * (sum(how.passes(model, analyzer.shares, len(asked))) + apart)
    per = analyzer.passes(model) if first or not analyzer.shares else Passes()
    return PlanRow(model=model.spec, method=analyzer.name(), target=target.text, pictures=n,
                   forwards=round(per.forwards * n), backwards=round(per.backwards * n),
                   at_most=analyzer.upper and per.forwards > 0,
                   checks=checks)
