"""What `xai.explain` and `xai.analyze` do: load, plan, run, write."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xai import benchmark
from xai.analyzer import Analyzer, Passes, Progress, precision_name
from xai.ask import (
    DEFAULT_METHOD,
    DEFAULT_MODEL,
    Ask,
    analyzers_of,
    none_usable,
    pictures_of,
    replay,
    several,
    sorted_out,
    targets_of,
)
from xai.attribution import Attribution, Sheet, attribute, sheets_of
from xai.controls import named
from xai.errors import XaiError, error
from xai.images import Images, load_images
from xai.job import Job, chunks, run_id
from xai.model import Model
from xai.result import Failure, Result, Run, atomic_folder, check_place
from xai.subject import Subject, as_model
from xai.targets import Target


@dataclass(kw_only=True)
class Explanation:
    """What a call made: the results, what could not be used, and the folder where it lies (None: not written)."""

    results: list[Result] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    folder: Path | None = None
    interrupted: bool = False

    @property
    def result(self) -> Result:
        """The only result; raises XaiError where there are several."""
        if len(self.results) != 1:
            raise error("the number of results", "one to be read as .result", len(self.results), "Read .results")
        return self.results[0]

    def _repr_html_(self) -> str:
        return "".join(result._repr_html_() for result in self.results)


def explain(models: Any = DEFAULT_MODEL, images: Any = None, methods: str | Sequence[str] = DEFAULT_METHOD, *,
            target: Any = "top1", out: str | Path | None = None, progress: Progress | None = None,
            **options: Any) -> Explanation:
    """Explain pictures: every method on every model, one forward a model and batch.

    models: a spec, a torch module, an xai.Model, or a list of them. images: a path, folder, array (h, w, 3) uint8 or
    float in [0, 1], PIL picture, tensor, Dataset, or a list. methods: names, one or several. target: see xai.targets.
    out: folder to write (None: nothing is written). options: the other fields of `Ask`. Raises XaiError for bad input;
    of several pictures the bad ones are named in `.failures` instead.
    """
    names = methods.split(",") if isinstance(methods, str) else methods
    ask = Ask(models=several(models), images=several(images), methods=tuple(n.strip() for n in names if n.strip()),
              target=target, **options)
    return run(ask, out, progress)


def analyze(method: str, models: Any = (), data: Any = None, *, out: str | Path | None = None,
            **options: Any) -> Explanation:
    """Run one analyzer of any kind on models and data; see `explain` for the arguments."""
    ask = Ask(models=several(models), images=several(data), methods=(method,), **options)
    return run(ask, out)


def benchmarked(model: Any = benchmark.MODEL, data: Any = benchmark.DATA, methods: Sequence[str] = (), *,
                effort: float = benchmark.EFFORT, weights: str | None = None, device: str = "auto", seed: int = 0,
                out: str | Path | None = None, table: str | None = None, progress: Progress | None = None,
                command: str = "") -> Explanation:
    """The league table of `xai.benchmark.benchmark`, written into `out` (None: a new folder under xai-out), and as
    Markdown into the file `table`. Raises XaiError for bad input."""
    check_place(Path(out) if out is not None else Path("xai-out") / "new")
    made = as_model(model, **({"weights": weights, "device": device, "seed": seed} if isinstance(model, str) else {}))
    images = data if isinstance(data, Images) else load_images(data)
    result = benchmark.benchmark(made, images, methods, effort=effort, seed=seed, progress=progress, command=command)
    done = Explanation(results=[result])
    digest = run_id([Job(spec=made.spec, weights_hash=made.weights_hash, pictures=tuple(images.names),
                         geometry=made.preprocessing.describe(), method="benchmark", version=result.version,
                         parameters=result.parameters, target=result.target, seed=seed)])
    done.folder = Path(out) if out is not None else Path("xai-out") / f"benchmark-{plain(made.spec)}-{digest}"
    write(done, done.folder)
    if table is not None:
        try:
            Path(table).parent.mkdir(parents=True, exist_ok=True)
            Path(table).write_text(benchmark.markdown(result), encoding="utf-8")
        except OSError as problem:
            raise error("--table", "a file that can be written", f"{table}: {problem.strerror}",
                        "Name another place") from problem
    return done


def benchmark_plan(model: Any, data: Any, methods: Sequence[str], *, effort: float, weights: str | None = None,
                   device: str = "auto") -> list[str]:
    """What a benchmark would ask, a line a method: its form, and the forwards and backwards of a map."""
    made = as_model(model, **({"weights": weights, "device": device} if isinstance(model, str) else {}))
    count = len(data if isinstance(data, Images) else load_images(data))
    lines = [f"{count} pictures on {made.spec}, and the last layer drawn anew for {min(count, benchmark.RANDOMISED)}"]
    for line in benchmark.planned(made, methods, effort):
        per = line.method.passes(made) if not line.problem else Passes()
        lines.append(f"{named(line.method):40} " + (f"left out: {line.problem}" if line.problem else
                                                    f"{per.forwards:g} forwards, {per.backwards:g} backwards a map"))
    return lines


def run(ask: Ask, out: str | Path | None = None, progress: Progress | None = None,
        automatic: Path | None = None) -> Explanation:
    """Do what was asked. `out`: the folder to write; `automatic`: the parent of a new one with a telling name."""
    if out is not None or automatic is not None:
        check_place(Path(out) if out is not None else automatic / "new")  # type: ignore[operator]  # not None here
    analyzers = analyzers_of(ask)
    targets, failures = targets_of(ask, analyzers), list[Failure]()
    images = pictures_of(ask)
    if not isinstance(analyzers[0], Attribution):
        images = sorted_out(images, failures)
    done = Explanation(failures=failures)
    jobs: list[Job] = []
    problems: list[XaiError] = []
    trouble: BaseException | None = None
    try:
        for i in range(max(1, len(ask.models))):
            for piece in _one_model(ask, i, analyzers, images, targets, failures,
                                    _scaled(progress, i, len(ask.models))):
                if isinstance(piece, XaiError):
                    problems.append(piece)
                else:
                    done.results.append(piece[0])
                    jobs += piece[1]
    except (KeyboardInterrupt, Exception) as stop:  # Ctrl-C, or a bug: what is finished is written all the same
        if not done.results:
            raise
        done.interrupted, trouble = True, None if isinstance(stop, KeyboardInterrupt) else stop
    if not done.results:
        raise problems[0] if problems else none_usable(failures) if failures else XaiError(
            "the pictures must be named; got none. Name a picture, a folder or sample:chelsea.")
    if out is not None or automatic is not None:
        done.folder = Path(out) if out is not None else automatic / _folder_name(done, run_id(jobs), ask.evidence)  # type: ignore[operator]  # not None here
        write(done, done.folder, ask.save)
    if trouble is not None:
        raise trouble
    return done


def write(done: Explanation, folder: Path, save: Sequence[str] = ()) -> None:
    """Write results, page and pictures into `folder`, all or nothing. Raises XaiError where it cannot be written."""
    from reports import export, page

    with atomic_folder(folder) as new:
        names = _sub_folders(done.results) if len(done.results) > 1 else ["."]
        for name, result in zip(list(names), done.results, strict=True):
            (new / name).mkdir(exist_ok=True)
            try:
                result.write(new / name)
            except XaiError as problem:  # one that no record can hold must not cost the others
                if len(names) == 1:
                    raise
                done.failures.append(Failure(name=result.analyzer, sentence=str(problem)))
                names.remove(name)
                (new / name).rmdir()
                continue
            export.export(result, new / name, save)
        first = done.results[0]
        if names != ["."] or done.failures or done.interrupted:
            Run(title=_run_title(done), command=first.provenance.command, results=tuple(names),
                failures=tuple(done.failures), interrupted=done.interrupted).write(new)
        page.write(new)


def _one_model(ask: Ask, i: int, analyzers: Sequence[Any], images: Images | None, targets: Sequence[Target],
               failures: list[Failure], progress: Progress | None) -> Iterator[tuple[Result, list[Job]] | XaiError]:
    alone = len(ask.models) * len(analyzers) == 1
    try:
        models = (ask.model(i),) if ask.models else ()
        subject = Subject(models, images, tuple(targets), ask.seed, ask.memory_bytes, evidence=ask.evidence)
        if not isinstance(analyzers[0], Attribution):
            if i == 0:
                everything = Subject(models + tuple(ask.model(k) for k in range(1, len(ask.models))), *_rest(subject))
                result = analyzers[0](everything, progress, ask.command or replay(ask))
                yield result, [_job(ask, m, analyzers[0], "", ()) for m in everything.models]
            return
        sheets = sheets_of(analyzers, subject)
        stopped: BaseException | None = None
        bad: list[Failure] = []
        try:
            attribute(sheets, subject, progress, bad if images is not None and len(images) > 1 else None, ask.chunk)
        except XaiError:
            raise
        except (KeyboardInterrupt, Exception) as stop:
            stopped = stop
        failures += [failure for failure in bad if failure not in failures]  # every model meets the same bad pictures
    except XaiError as problem:
        if len(ask.models) < 2:
            raise
        failures.append(Failure(name=str(ask.models[i]), sentence=str(problem)))
        yield problem
        return
    for sheet in sheets:
        if sheet.problem is not None and not sheet.leaves:
            if alone and len(targets) == 1 and stopped is None:
                raise sheet.problem
            yield sheet.problem
        elif sheet.leaves:
            yield sheet.result(ask.command or replay(ask), ask.seed), list(_jobs(ask, sheet))
        if sheet.problem is not None:
            failures.append(_lost(sheet))
    if stopped is not None:
        raise stopped


def _lost(sheet: Sheet) -> Failure:
    """What a method could not do, and on which pictures where others have their map."""
    some = f", {len(sheet.lost)} of {len(sheet.lost) + len(sheet.leaves)} pictures ({', '.join(sheet.lost[:3])}" \
           f"{', ...' if len(sheet.lost) > 3 else ''})" if sheet.leaves else ""
    return Failure(name=f"{sheet.analyzer.name()} on {sheet.model.spec}{some}", sentence=str(sheet.problem))


def _rest(subject: Subject) -> tuple[Any, ...]:
    return subject.images, subject.targets, subject.seed, subject.memory_bytes


def _jobs(ask: Ask, sheet: Sheet) -> Iterator[Job]:
    for piece in chunks([image.hash for image in sheet.images]):
        yield _job(ask, sheet.model, sheet.analyzer, sheet.target.text, piece)


def _job(ask: Ask, model: Model, analyzer: Analyzer, target: str, pictures: tuple[str, ...]) -> Job:
    return Job(spec=model.spec, weights_hash=model.weights_hash, pictures=pictures,
               geometry=model.preprocessing.describe(), method=analyzer.name(), version=analyzer.version,
               parameters=analyzer.parameters(), target=target, seed=ask.seed,
               chunk=str(ask.chunk or "auto"), precision=precision_name(model))


def _scaled(progress: Progress | None, i: int, models: int) -> Progress | None:
    """Progress of model i of several, told as one."""
    if progress is None or models <= 1:
        return progress
    return lambda done, total: progress(i * total + done, models * total)


def _sub_folders(results: Sequence[Result]) -> list[str]:
    """`<model>__<method>`, with the target where several were asked for, each name once."""
    several = len({r.target for r in results}) > 1
    names: list[str] = []
    for r in results:
        parts = [r.models[0].spec if r.models else "no-model", r.analyzer] + ([r.target] if several else [])
        name = "__".join(plain(p) for p in parts)
        names.append(name if name not in names else f"{name}-{len(names)}")
    return names


def _folder_name(done: Explanation, digest: str, evidence: str) -> str:
    """`<picture>-<model>-<method>-<id8>`, a count where there are several; with the level of evidence unless it is
    quick, so that a full card is not replaced by the next run."""

    def one(values: Sequence[str], many: str) -> str:
        found = list(dict.fromkeys(values))
        return plain(found[0]) if len(found) == 1 else f"{len(found)}-{many}" if found else ""

    pictures = [Path(i.name).stem for r in done.results for i in r.images]
    parts = [one(pictures, "pictures"), one([m.spec for r in done.results for m in r.models], "models"),
             one([r.analyzer for r in done.results], "methods"), digest, "" if evidence == "quick" else evidence]
    return "-".join(p for p in parts if p)


def plain(text: str) -> str:
    """A name fit for any file system: letters, digits, dot, dash and underscore, at most 60 of them."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text.removeprefix("xai:")).strip("-.")[:60] or "unnamed"


def _run_title(done: Explanation) -> str:
    def several(values: Sequence[str], word: str) -> str:
        found = list(dict.fromkeys(values))
        return found[0] if len(found) == 1 else f"{len(found)} {word}"

    methods = several([r.title for r in done.results], "methods")
    models = several([m.spec for r in done.results for m in r.models], "models")
    return f"{methods} on {models}: {several([i.name for r in done.results for i in r.images], 'pictures')}"
