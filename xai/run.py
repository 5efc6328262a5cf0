"""What `xai.explain` and `xai.analyze` do: load, plan, run, write."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xai import catalog
from xai.analyzer import Analyzer, Attribution, Progress, Sheet, attribute, precision_name
from xai.errors import XaiError, error
from xai.images import Images, load_images
from xai.job import Job, chunks, run_id
from xai.model import Model
from xai.result import Failure, Result, Run, atomic_folder
from xai.subject import Subject, as_model, as_targets
from xai.targets import Target

DEFAULT_MODEL, DEFAULT_METHOD = "xai:photo20", "gradcam"
FORMATS = ("npy", "png", "overlay")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a person asked for, before any loading. `weights`: one for all, or one each. `save`: npy, png, overlay."""

    models: tuple[Any, ...]
    images: tuple[Any, ...] = ()
    methods: tuple[str, ...] = (DEFAULT_METHOD,)
    target: Any = "top1"
    settings: Mapping[str, str] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    device: str = "auto"
    precision: str | None = None
    seed: int = 0
    memory_bytes: int | None = None
    chunk: int | None = None
    save: tuple[str, ...] = ()
    command: str = ""

    def __post_init__(self) -> None:
        for name in self.save:
            if name not in FORMATS:
                raise error("--save", f"one or more of {', '.join(FORMATS)}", repr(name), "Separate several by commas")
        if len(self.weights) > 1 and len(self.weights) != len(self.models):
            raise error("--weights", f"given once, or once for each of the {len(self.models)} models",
                        f"{len(self.weights)} times", "Give them in the order of the models")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise error("the seed", "a whole number from 0", self.seed, "Give one with --seed")

    def model(self, i: int) -> Model:
        """Load model i."""
        weights = self.weights[i % len(self.weights)] if self.weights else None
        return as_model(self.models[i], **({"weights": weights, "device": self.device, "precision": self.precision,
                                            "seed": self.seed} if isinstance(self.models[i], str) else {}))


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One line of a plan: what it is and what it will cost, in passes over one picture each."""

    model: str
    method: str
    target: str
    pictures: int
    forwards: int
    backwards: int
    checks: int


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
    ask = Ask(models=_several(models), images=_several(images), methods=tuple(n.strip() for n in names if n.strip()),
              target=target, **options)
    return run(ask, out, progress)


def analyze(method: str, models: Any = (), data: Any = None, *, out: str | Path | None = None,
            **options: Any) -> Explanation:
    """Run one analyzer of any kind on models and data; see `explain` for the arguments."""
    ask = Ask(models=_several(models), images=_several(data), methods=(method,), **options)
    return run(ask, out)


def run(ask: Ask, out: str | Path | None = None, progress: Progress | None = None,
        automatic: Path | None = None) -> Explanation:
    """Do what was asked. `out`: the folder to write; `automatic`: the parent of a new one with a telling name."""
    analyzers = _analyzers(ask)
    targets, failures = as_targets(ask.target), list[Failure]()
    images = _pictures(ask, failures)
    done = Explanation(failures=failures)
    jobs: list[Job] = []
    problems: list[XaiError] = []
    try:
        for i in range(max(1, len(ask.models))):
            for piece in _one_model(ask, i, analyzers, images, targets, failures,
                                    _scaled(progress, i, len(ask.models))):
                if isinstance(piece, XaiError):
                    problems.append(piece)
                else:
                    done.results.append(piece[0])
                    jobs += piece[1]
    except KeyboardInterrupt:
        if not done.results:
            raise
        done.interrupted = True
    if not done.results:
        raise problems[0] if problems else XaiError(
            f"the pictures must be usable; got none that is. {failures[0].sentence}" if failures else
            "no picture was given. Name one.")
    if out is not None or automatic is not None:
        done.folder = Path(out) if out is not None else automatic / _folder_name(done, run_id(jobs))  # type: ignore[operator]  # not None here
        write(done, done.folder, ask.save)
    return done


def plan(ask: Ask) -> list[PlanRow]:
    """What `run` would do and cost; loads the models and looks at the pictures, runs nothing."""
    analyzers, targets = _analyzers(ask), as_targets(ask.target)
    images = _pictures(ask, [])
    rows = []
    for i in range(len(ask.models)):
        model = ask.model(i)
        n = len(images) if images is not None else 0
        rows.append(PlanRow(model=model.spec, method="(shared forward)", target="", pictures=n, forwards=n,
                            backwards=0, checks=0))
        for analyzer in analyzers:
            per = analyzer.passes()
            for target in targets:
                checked = isinstance(analyzer, Attribution) and analyzer.checked_by_class() and target.function is None
                rows.append(PlanRow(model=model.spec, method=analyzer.name(), target=target.text, pictures=n,
                                    forwards=round(per.forwards * n), backwards=round(per.backwards * n),
                                    checks=round(per.backwards * n) if checked else 0))
    return rows


def write(done: Explanation, folder: Path, save: Sequence[str] = ()) -> None:
    """Write results, page and pictures into `folder`, all or nothing. Raises XaiError where it cannot be written."""
    from reports import export, page

    with atomic_folder(folder) as new:
        names = _sub_folders(done.results) if len(done.results) > 1 else ["."]
        for name, result in zip(names, done.results, strict=True):
            (new / name).mkdir(exist_ok=True)
            result.write(new / name)
            export.export(result, new / name, save)
        first = done.results[0]
        if len(done.results) > 1 or done.failures or done.interrupted:
            Run(title=_run_title(done), command=first.provenance.command, results=tuple(names),
                failures=tuple(done.failures), interrupted=done.interrupted).write(new)
        page.write(new)


def _analyzers(ask: Ask) -> list[Any]:
    if not ask.methods:
        raise error("the method", "one of those that `xai methods list` shows", "none", "Name one with --method")
    analyzers = catalog.make(list(ask.methods), dict(ask.settings))
    if len(analyzers) > 1 and not all(isinstance(a, Attribution) for a in analyzers):
        other = next(a.name() for a in analyzers if not isinstance(a, Attribution))
        raise error("several methods in one command", "methods that look at pictures one by one", other,
                    f"Run it alone: xai analyze {other}")
    if any(isinstance(a, Attribution) for a in analyzers) and not ask.models:
        raise error("the model", "named", "none", "Name one with --model")
    return analyzers


def _pictures(ask: Ask, failures: list[Failure]) -> Images | None:
    """All pictures in order; of several the bad ones go to `failures`, a single bad one raises."""
    if not ask.images:
        return None
    loaded: list[Images] = []
    for source in ask.images:
        try:
            loaded.append(source if isinstance(source, Images) else load_images(source))
        except XaiError as problem:
            if len(ask.images) == 1:
                raise
            failures.append(Failure(name=str(source), sentence=str(problem)))
    if not loaded:
        raise XaiError(failures[0].sentence)
    images = loaded[0]
    for more in loaded[1:]:
        images = images + more
    if len(images) + len(failures) == 1:
        images[0]
        return images
    good, bad = images.good()
    failures += [Failure(name=name, sentence=said) for name, said in bad]
    if not len(good):
        raise XaiError(failures[0].sentence)
    return good


def _one_model(ask: Ask, i: int, analyzers: Sequence[Any], images: Images | None, targets: Sequence[Target],
               failures: list[Failure], progress: Progress | None) -> Iterator[tuple[Result, list[Job]] | XaiError]:
    alone = len(ask.models) * len(analyzers) == 1
    try:
        models = (ask.model(i),) if ask.models else ()
        subject = Subject(models, images, tuple(targets), ask.seed, ask.memory_bytes)
        if not isinstance(analyzers[0], Attribution):
            if i == 0:
                everything = Subject(models + tuple(ask.model(k) for k in range(1, len(ask.models))), *_rest(subject))
                result = analyzers[0](everything, progress, ask.command or _replay(ask))
                yield result, [_job(ask, m, analyzers[0], "", ()) for m in everything.models]
            return
        sheets = attribute(analyzers, subject, progress,
                           failures if images is not None and len(images) > 1 else None, ask.chunk)
    except XaiError as problem:
        if len(ask.models) < 2:
            raise
        failures.append(Failure(name=str(ask.models[i]), sentence=str(problem)))
        yield problem
        return
    for sheet in sheets.values():
        if sheet.problem is not None:
            if alone and len(targets) == 1:
                raise sheet.problem
            failures.append(Failure(name=f"{sheet.analyzer.name()} on {sheet.model.spec}", sentence=str(sheet.problem)))
            yield sheet.problem
        elif sheet.images or not sheet.target.unless:
            yield sheet.result(ask.command or _replay(ask), ask.seed), list(_jobs(ask, sheet))


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


def _folder_name(done: Explanation, digest: str) -> str:
    """`<picture>-<model>-<method>-<id8>`, a count where there are several."""

    def one(values: Sequence[str], many: str) -> str:
        found = list(dict.fromkeys(values))
        return plain(found[0]) if len(found) == 1 else f"{len(found)}-{many}" if found else ""

    pictures = [Path(i.name).stem for r in done.results for i in r.images]
    parts = [one(pictures, "pictures"), one([m.spec for r in done.results for m in r.models], "models"),
             one([r.analyzer for r in done.results], "methods"), digest]
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


def _replay(ask: Ask) -> str:
    """The command line that does the same, or, where a model or picture has no name, the Python call."""
    if not all(isinstance(v, str) for v in (*ask.models, *ask.images, ask.target)):
        shape: Callable[[Any], str] = lambda v: repr(v) if isinstance(v, str) else f"<{type(v).__name__}>"  # noqa: E731
        return (f"xai.explain({', '.join(map(shape, ask.models))}, {', '.join(map(shape, ask.images))}, "
                f"{','.join(ask.methods)!r}, target={shape(ask.target)}, seed={ask.seed})")
    words = ["xai", "explain", *ask.images, *(w for m in ask.models for w in ("--model", m)),
             "--method", ",".join(ask.methods), "--target", ask.target, "--seed", str(ask.seed),
             *(w for f in ask.weights for w in ("--weights", f)),
             *(w for k, v in ask.settings.items() for w in ("--set", f"{k}={v}"))]
    return shlex.join(words)


def _several(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
