"""The command line: parses, calls one library function, prints."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xai import catalog
from xai.cli_filters import filters_app
from xai.cli_fourier import fourier_app
from xai.cli_lists import methods_app, models_app
from xai.cli_options import (
    Compile,
    Device,
    Dry,
    Evidence,
    Json,
    Layer,
    Memory,
    Method,
    Model,
    Open,
    Out,
    OwnTarget,
    Precision,
    Quiet,
    Save,
    Seed,
    Setting,
    TargetText,
    Weights,
    method_names,
    model_names,
)
from xai.errors import XaiError, error

if TYPE_CHECKING:
    from xai.ask import Ask
    from xai.plan import PlanRow
    from xai.result import Failure
    from xai.run import Explanation

SLOW = 1.0  # seconds after which a progress bar appears
CTRL_C = 130
# What typer raises for a wrong command line: click's ClickException or, newer ones, that of their own copy of click.
MISUSE: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
EPILOG = ("Pictures: a file, a folder, Parquet, COCO JSON, VOC, CSV, sample:NAME, planted:COUNT. "
          "Models: `xai models list`. Methods: `xai methods list`.")

app = typer.Typer(name="xai", help="Why did the model say that, and should I believe the answer?", no_args_is_help=True,
                  rich_markup_mode=None, pretty_exceptions_enable=False, epilog=EPILOG)
app.add_typer(models_app, name="models")
app.add_typer(methods_app, name="methods")
app.add_typer(filters_app, name="filters")


ShowVersion = Annotated[bool, typer.Option("--version", help="Print the environment, for a bug report.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an unexpected error came from.")]


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: ShowVersion = False, traceback: Traceback = False) -> None:
    """Why did the model say that, and should I believe the answer?"""
    if version:
        _print_environment()
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def explain(images: Annotated[list[str], typer.Argument(help="Pictures, folders, Parquet files or sample:NAME.")],
            model: Model = [], method: Method = ["gradcam"], target: TargetText = "top1", layer: Layer = "",  # noqa: B006  # typer copies
            set_: Setting = [], weights: Weights = [], out: Out = "", save: Save = "", device: Device = "auto",  # noqa: B006  # typer copies
            precision: Precision = "", seed: Seed = 0, memory: Memory = "", compile_: Compile = False,
            evidence: Evidence = "quick", open_: Open = False, quiet: Quiet = False, json_: Json = False,
            dry_run: Dry = False) -> None:
    """Explain pictures: where in the image a model saw a class. One page for all pictures, models and methods."""
    from xai.ask import DEFAULT_MODEL

    _go(_ask(images, model or [DEFAULT_MODEL], method, target, layer, set_, weights, save, device, precision, seed,
             memory, compile_, evidence), out, open_, quiet, json_, dry_run)


@app.command()
def analyze(method: Annotated[str, typer.Argument(help="The analyzer; see `xai methods list`.",
                                                  autocompletion=method_names)],
            model: Model = [], data: Annotated[list[str], typer.Option("--data", help="Pictures or a data set.")] = [],  # noqa: B006  # typer copies
            target: OwnTarget = None, layer: Layer = "", set_: Setting = [], weights: Weights = [], out: Out = "",  # noqa: B006  # typer copies
            save: Save = "", device: Device = "auto", precision: Precision = "", seed: Seed = 0, memory: Memory = "",
            compile_: Compile = False, evidence: Evidence = "quick", open_: Open = False, quiet: Quiet = False,
            json_: Json = False, dry_run: Dry = False) -> None:
    """Run one analyzer of any kind on models and data."""
    _go(_ask(data, model, [method], target, layer, set_, weights, save, device, precision, seed, memory,
             compile_, evidence), out, open_, quiet, json_, dry_run)


app.add_typer(fourier_app(analyze), name="fourier")


@app.command()
def benchmark(model: Annotated[str, typer.Option("--model", "-m", help="Model spec.",
                                                 autocompletion=model_names)] = "xai:planted",
              data: Annotated[str, typer.Option("--data", help="Pictures with masks or boxes: planted:COUNT, Parquet, "
                                                               "COCO, VOC or CSV.")] = "planted:500",
              method: Annotated[list[str], typer.Option("--method", help="Methods, separated by commas, with "
                                                        "parameters as rise(samples=500); default: all.")] = [],  # noqa: B006  # typer copies
              effort: Annotated[float, typer.Option("--effort", min=1, help="Forwards a map may take.")] = 200,
              weights: Annotated[str, typer.Option("--weights", help='Weights file, or "random".')] = "",
              table: Annotated[str, typer.Option("--table", help="Also write the league table to this Markdown file.")
                               ] = "",
              device: Device = "auto", out: Out = "", seed: Seed = 0, open_: Open = False, quiet: Quiet = False,
              json_: Json = False, dry_run: Dry = False) -> None:
    """Rank attributions on pictures whose evidence is known, beside maps that know nothing of the network."""
    from xai.run import benchmarked

    names = tuple(name for text in method for name in catalog.split(text))
    if dry_run:
        from xai.run import benchmark_plan

        for said in benchmark_plan(model, data, names, effort=effort, weights=weights or None, device=device):
            typer.echo(said)
        return
    with Progress(quiet or json_) as progress:
        done = benchmarked(model, data, names, effort=effort, weights=weights or None, device=device, seed=seed,
                           out=out or None, table=table or None, progress=progress,
                           command=shlex.join(["xai", *sys.argv[1:]]))
    if json_:
        _print_json(done)
    assert done.folder is not None
    _say_where(done.folder / "index.html", quiet or json_, open_)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A folder that xai wrote.")],
           csv: Annotated[bool, typer.Option("--csv", help="Print the scores as CSV instead.")] = False,
           open_: Open = False, quiet: Quiet = False) -> None:
    """Draw the page again from the record, or print its scores as CSV."""
    from reports import page, table

    if csv:
        typer.echo(table.csv(folder), nl=False)
        return
    try:
        written = page.write(folder)
    except OSError as problem:
        raise error("the folder", "writable", f"{folder}: {problem.strerror}",
                    "Copy it to a place where you may write") from problem
    _say_where(written, quiet, open_)


def _ask(images: list[str], model: list[str], method: list[str], target: str | None, layer: str, settings: list[str],
         weights: list[str], save: str, device: str, precision: str, seed: int, memory: str,
         compile_: bool, evidence: str = "quick") -> Ask:
    from xai.ask import Ask

    pairs: dict[str, str] = {"layer": layer} if layer else {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise error("--set", "of the form method.key=value or key=value", repr(text),
                        "For example --set smoothgrad.samples=20")
        pairs[key.strip()] = value.strip()
    names = tuple(n.strip() for text in method for n in text.split(",") if n.strip())
    return Ask(models=tuple(model), images=tuple(images), methods=names, target=target, settings=pairs,
               weights=tuple(weights), device=device, precision=precision or None, seed=seed,
               memory_bytes=parse_bytes(memory), compile=compile_, evidence=evidence,
               save=tuple(s.strip() for s in save.split(",") if s.strip()), command=shlex.join(["xai", *sys.argv[1:]]))


def _go(ask: Ask, out: str, open_: bool, quiet: bool, json_: bool, dry_run: bool) -> None:
    if dry_run:
        from xai.plan import plan

        found = plan(ask)
        _print_plan(found.rows, json_)
        _end(found.failures)
        return
    from xai.run import run

    with Progress(quiet or json_) as progress:
        done = run(ask, out or None, progress, automatic=None if out else Path("xai-out"))
    if json_:
        _print_json(done)
    assert done.folder is not None
    _say_where(done.folder / "index.html", quiet or json_, open_)
    _end(done.failures, done.interrupted)


def _end(failures: Sequence[Failure], interrupted: bool = False) -> None:
    """Name what could not be done, and leave with the code that says so."""
    for failure in failures:
        _complain(f"{failure.name}: {failure.sentence}")
    if interrupted:
        raise Interrupted
    if failures:
        raise typer.Exit(1)


class Interrupted(Exception):
    """Ctrl-C after something was finished and written."""


class Progress:
    """A bar with the time left on standard error, after a second and on a terminal only."""

    def __init__(self, silent: bool) -> None:
        self._silent = silent or not sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._start = 0.0

    def __enter__(self) -> Progress:
        import time

        self._start = time.monotonic()
        return self

    def __call__(self, done: int, total: int) -> None:
        import time

        if self._silent or (self._bar is None and time.monotonic() - self._start < SLOW):
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(TextColumn("explaining"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
                            console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=total)
        self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def parse_bytes(text: str) -> int | None:
    """4G, 500M or a plain number of bytes; "" is None."""
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", text.strip(), re.IGNORECASE)
    value = int(float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " ")) if found else 0
    if value <= 0:
        raise error("--memory", "a size such as 4G or 500M", repr(text), "Give one, or leave it out")
    return value


def _print_plan(rows: list[PlanRow], as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        import json

        typer.echo(json.dumps([asdict(r) for r in rows], indent=1))
        return
    typer.echo(f"{'model':34} {'method':22} {'target':14} {'pictures':>8} "
               f"{'forwards':>9} {'backwards':>9} {'checks':>7}")
    for r in rows:
        typer.echo(f"{r.model:34} {r.method:22} {r.target:14} {r.pictures:8} "
                   f"{('<=' if r.at_most else '') + str(r.forwards):>9} {r.backwards:9} {r.checks:7}")
    typer.echo(f"{'in all, passes of one picture':81} {sum(r.forwards for r in rows):8} "
               f"{sum(r.backwards for r in rows):9} {sum(r.checks for r in rows):7}")


def _print_json(done: Explanation) -> None:
    from xai.result import dump_json

    records = [result.record()[0] for result in done.results]
    typer.echo(dump_json(records[0] if len(records) == 1 else records), nl=False)


def _say_where(page: Path, quiet: bool, open_: bool) -> None:
    if not quiet:
        typer.echo(str(page))
    if open_:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def _print_environment() -> None:
    import platform

    from xai.provenance import versions

    for name, version in versions().items():
        typer.echo(f"{name} {version}")
    import torch

    typer.echo(f"system {platform.platform()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    typer.echo(f"cuda {torch.version.cuda or 'not built in'}, available: {torch.cuda.is_available()}; "
               f"mps: {torch.backends.mps.is_available()}")


def main() -> int:
    """Run the command line and give its exit code: 0, 1 some inputs bad, 2 bad input, 70 a bug of ours, 130 Ctrl-C."""
    # Two OpenMP threads that spin are slower than one; set before torch is imported, and anybody may set it otherwise.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        _side_by_side()
        code = app(prog_name="xai", standalone_mode=False)
        if code == CTRL_C:  # how typer tells it; a run that has finished pictures raises Interrupted instead
            return _interrupted("nothing was written")
        return code if isinstance(code, int) else 0
    except XaiError as problem:
        _complain(problem)
        return 2
    except Interrupted:
        return _interrupted("what was finished is written")
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted("nothing was written")
    except MISUSE as problem:
        return _misused(problem)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as problem:  # a bug of ours: one sentence, and the way to the rest
        if "--traceback" in sys.argv:
            raise
        _complain(f"unexpected {type(problem).__name__}: {problem}. This is a bug: please report it with the "
                  "output of `xai --version`; `xai --traceback ...` shows where.")
        return 70


def _complain(what: object) -> None:
    """One line on standard error, whatever stands in a file's name."""
    typer.echo("xai: " + re.sub(r"[\x00-\x1f\x7f-\x9f\s]+", " ", str(what)), err=True)


def _misused(problem: Any) -> int:
    """The sentence for an option or a command that is not there, or the help where nothing was asked."""
    if type(problem).__name__ == "NoArgsIsHelpError":
        typer.echo(problem.ctx.get_help())
        return 0
    path = problem.ctx.command_path if getattr(problem, "ctx", None) else "xai"
    said = problem.format_message().rstrip(".")
    _complain(f"{said}{'' if said.endswith('?') else '.'} See `{path} --help`.")
    return 2


def _interrupted(what: str) -> int:
    _complain(f"interrupted; {what}.")
    return CTRL_C


def _side_by_side() -> None:
    """The four packages must come from one place: a folder of that name in the working directory would shadow one."""
    import importlib.util

    home = Path(__file__).resolve().parent.parent
    for name in ("analyzers", "filterdb", "reports"):
        found = importlib.util.find_spec(name)
        places = [] if found is None else [Path(p).resolve() for p in found.submodule_search_locations or ()]
        if home / name not in places:
            raise error(f"the package {name}", f"the one beside {home / 'xai'}", places[0] if places else "none",
                        "Rename that folder, or run xai from another directory")
