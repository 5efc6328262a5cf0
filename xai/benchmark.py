"""The league table: every attribution on pictures whose evidence is known, beside maps that know nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from xai import catalog, health
from xai.analyzer import Progress, precision_name
from xai.attribution import Attribution
from xai.batch import Batch
from xai.controls import CONTROLS, Control, named
from xai.errors import XaiError, error
from xai.images import Images
from xai.metric import Case, Metric, case_of
from xai.model import Model
from xai.panels import Column, Matrix, Table, Text
from xai.provenance import peak_memory, provenance
from xai.result import Cost, Result, Verdict
from xai.statistics import interval
from xai.targets import Target

MODEL, DATA = "xai:planted", "planted:500"
EFFORT = 200  # forwards a map, by default: methods of many samples take as many as that allows
METRICS = ("pointing_game", "relevance_accuracy")
RANDOMISATION = "model_randomization(order=last_layer,measure=pearson)"
RANDOMISED = 100  # pictures for which the last layer is drawn anew: it makes every map a second time
LEAGUE = (("energy", "energy pointing"), ("rank", "rank accuracy"), ("hit", "pointing game"),
          ("last_layer", "last layer drawn anew"))
RIVALS = ("random", "centre")  # that a map must beat in energy and rank by intervals that do not overlap


@dataclass
class Line:
    """One method and what it scored."""

    method: Attribution
    values: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    pictures: int = 0
    problem: str = ""

    def mean(self, name: str, seed: int, hits: bool = False) -> tuple[float, float, float, int]:
        """(mean, low, high, pictures) of one score."""
        known = torch.cat(self.values[name]) if name in self.values else torch.empty(0, dtype=torch.float64)
        known = known[torch.isfinite(known)]
        low, high = interval(known, seed, hits)
        return (float(known.mean()) if len(known) else math.nan), low, high, len(known)


def planned(model: Model, methods: Sequence[str], effort: float) -> list[Line]:
    """A line for every method (none named: all), in the form that the effort allows; `problem` where there is none."""
    asked = [catalog.parse(text) for text in methods] or [catalog.find(name)() for name, entry in
                                                          catalog.entries().items() if entry.kind == "attribution"]
    wrong = next((one for one in asked if not isinstance(one, Attribution)), None)
    if wrong is not None:
        raise error("what the benchmark asks", "an attribution", wrong.name(), "`xai methods list` names them")
    return [_line(one, model, effort) for one in asked if isinstance(one, Attribution)]


def benchmark(model: Model, images: Images, methods: Sequence[str] = (), *, target: str = "label",
              effort: float = EFFORT, seed: int = 0, progress: Progress | None = None, command: str = "") -> Result:
    """Ask every method (none named: all that the model can serve) about pictures whose evidence is known by a mask or a
    box, and give the league table.

    effort: the most that a map may cost, in forwards; a method of many samples takes fewer, one that cannot is left
    out, and the table says so. Explained is the label. Raises XaiError where no picture has a region or no method runs.
    """
    lines = planned(model, methods, effort)
    if all(line.problem for line in lines):
        raise XaiError(lines[0].problem)
    lines += [Line(one) for one in CONTROLS]
    metrics = [_metric(text) for text in METRICS]
    anew = _metric(RANDOMISATION) if "hooks" in model.capabilities else None
    started, before, done = time.perf_counter(), (model.cost.forwards, model.cost.backwards), 0
    for batch in model.prepare(images, seed=seed):
        for k, line in enumerate(lines):
            if not line.problem:
                _judge(line, batch, Target(target), metrics, anew if done < RANDOMISED else None)
            if progress is not None:
                progress(done * len(lines) + (k + 1) * len(batch), len(images) * len(lines))
        done += len(batch)
    cost = Cost(forwards=model.cost.forwards - before[0], backwards=model.cost.backwards - before[1],
                seconds=time.perf_counter() - started, peak_memory=peak_memory())
    return _result(model, lines, done, cost, seed, command, {"target": target, "effort": effort, "pictures": done,
                                                             "methods": [named(line.method) for line in lines]})


def _line(method: Attribution, model: Model, effort: float) -> Line:
    try:
        method.check(model)
        form = method.within(effort, model) if method.lessens else (
            method if method.passes(model).work <= effort else None)
    except XaiError as problem:
        return Line(method, problem=str(problem))
    if form is None:
        return Line(method, problem=f"A map costs {method.passes(model).work:g} forwards, more than {effort:g}; "
                                    "--effort allows more.")
    return Line(form)


def _metric(text: str) -> Metric:
    made = catalog.parse(text)
    assert isinstance(made, Metric)
    return made


def _judge(line: Line, batch: Batch, target: Target, metrics: Sequence[Metric], anew: Metric | None) -> None:
    """The maps of one method for a batch, and all their scores; a method that fails is out."""
    try:
        batch.want(*line.method.layers())
        bound = batch.bind(target)
        batch.output()  # the batch's common forward is nobody's
        count, started = batch.model.cost, time.perf_counter()
        before = (count.forwards, count.backwards)
        case = case_of(line.method, batch, bound)
        line.forwards += count.forwards - before[0]
        line.backwards += count.backwards - before[1]
        line.seconds += time.perf_counter() - started
        line.pictures += len(batch)
        for metric in metrics if anew is None else (*metrics, anew):
            _keep(line, metric, case)
    except XaiError as problem:
        line.problem = str(problem)


def _keep(line: Line, metric: Metric, case: Case) -> None:
    bad = ~case.sound()
    for name, values in metric.score(case).values.items():
        line.values.setdefault(name, []).append(metric.punished(name, values, bad))


def _result(model: Model, lines: list[Line], pictures: int, cost: Cost, seed: int, command: str,
            parameters: dict[str, Any]) -> Result:
    told = [line for line in lines if not line.problem]
    scores = {(named(line.method), key): line.mean(key, seed, key == "hit") for line in told for key, _ in LEAGUE}
    if all(math.isnan(value[0]) for (_, key), value in scores.items() if key == "energy"):
        raise error("the pictures of a benchmark", "ones with a mask or a box for the object", "none of them",
                    f"Take {DATA}, a Parquet file with a column `box`, COCO, VOC or CSV annotations")
    told.sort(key=lambda line: -scores[named(line.method), "energy"][0])
    league = Table(key="league", title=f"{model.spec}: {pictures} pictures", rows=tuple(_row(o, scores) for o in told),
                   columns=(Column("method"), *(Column(title) for _, title in LEAGUE), Column("forwards a map"),
                            Column("ms a map")),
                   note="Mean and 95 % interval over the pictures. Energy pointing: share of the positive relevance "
                        "that lies on the evidence; rank accuracy: share of the K most relevant pixels, K its size; "
                        "pointing game: whether the top pixel lies on it. Last layer drawn anew: correlation with the "
                        f"map of a network whose last layer was shuffled (the first {min(pictures, RANDOMISED)} "
                        f"pictures); above {health.WEIGHTS:g} the map does not depend on it. A backward counts as two "
                        "forwards. random, centre and sobel know nothing of the network.")
    long = Table(key="scores", title="The numbers", columns=(Column("method"), Column("score"), Column("mean"),
                                                             Column("low"), Column("high"), Column("pictures")),
                 rows=tuple((method, key, *(None if math.isnan(v) else v for v in value[:3]), value[3])
                            for (method, key), value in scores.items()))
    glance = Matrix(key="means", title="The means at a glance", rows=tuple(named(line.method) for line in told),
                    columns=tuple(title for _, title in LEAGUE), values=torch.tensor(
                        [[scores[named(line.method), key][0] for key, _ in LEAGUE] for line in told]).float().numpy())
    out = [line for line in lines if line.problem]
    left = Text(key="left out", title="Left out", text=" ".join(f"{named(o.method)}: {o.problem}" for o in out))
    return Result(
        analyzer="benchmark", version=1, title="League table of attributions", parameters=parameters,
        summary="how much of each method's map lies on the evidence, and whether it depends on the weights",
        models=(model.record(),), target=str(parameters["target"]), cost=cost,
        panels=(league, glance, long, *([left] if out else [])), verdicts=tuple(_verdicts(told, scores)),
        provenance=provenance(command, seed, str(model.device), precision_name(model)))


def _row(line: Line, scores: dict[tuple[str, str], tuple[float, float, float, int]]) -> tuple[Any, ...]:
    cells = []
    for key, _ in LEAGUE:
        mean, low, high, _n = scores[named(line.method), key]
        cells.append("-" if math.isnan(mean) else f"{mean:.3f} ({low:.3f} to {high:.3f})")
    each = max(1, line.pictures)
    return (named(line.method), *cells, round((line.forwards + 2 * line.backwards) / each, 1),
            round(1000 * line.seconds / each, 2))


def _verdicts(lines: Sequence[Line], scores: dict[tuple[str, str], tuple[float, float, float, int]]) -> list[Verdict]:
    found = []
    for line in lines:
        if isinstance(line.method, Control):
            continue
        name = named(line.method)
        gaps = [(scores[name, key][1] - scores[rival, key][2], f"{rival} in {title}") for rival in RIVALS
                for key, title in LEAGUE[:2]]
        lost = [what for gap, what in gaps if not gap > 0]
        found.append(Verdict(
            name="beats the blind", value=min(gap for gap, _ in gaps), threshold=0.0, passed=not lost, sentence=(
                f"{name} beats {' and '.join(RIVALS)} in energy pointing and rank accuracy by intervals that do not "
                "overlap." if not lost else f"{name} is not shown to beat {', '.join(lost)}."),
            advice="" if not lost else "What does not beat these has shown nothing about the network."))
        mean = scores[name, "last_layer"][0]
        if not math.isnan(mean):
            good = mean <= health.WEIGHTS
            found.append(Verdict(
                name="weight-dependent", value=mean, threshold=health.WEIGHTS, passed=good, sentence=(
                    f"{name} changes when the last layer is drawn anew." if good else
                    f"{name} stays nearly the same when the last layer is drawn anew: it fails the randomisation "
                    "test."),
                advice="" if good else "Do not read it as what the network learned."))
    return found


def markdown(result: Result) -> str:
    """The league table of a result, as Markdown, with the command that made it."""
    table = next(panel for panel in result.panels if isinstance(panel, Table) and panel.key == "league")
    head = [column.name for column in table.columns]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |",
             *("| " + " | ".join(map(str, row)) + " |" for row in table.rows)]
    return "\n".join(lines) + f"\n\n{table.title}. {table.note} `{result.provenance.command}`\n"
