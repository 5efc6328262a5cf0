"""The commands of the filter database: collect, query, shift."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xai.cli_options import Open, Quiet
from xai.errors import XaiError, error

if TYPE_CHECKING:
    from filterdb.database import Database
    from filterdb.shift import Group
    from filterdb.store import Collected
    from xai.result import Result

filters_app = typer.Typer(help="Collect the convolution filters of models, query and compare them.",
                          no_args_is_help=True, rich_markup_mode=None)
HDF5 = (".h5", ".hdf5")
Specs = Annotated[list[str], typer.Argument(help="Model specs, or the HDF5 file of the published CNN Filter DB.")]
Db = Annotated[Path, typer.Option("--db", help="Folder of the filter database.")]
Weights = Annotated[list[str], typer.Option("--weights", help='Weights file, "random" or "own"; one for all models, or '
                                                              "one each.")]
Folded = Annotated[bool, typer.Option("--folded", help="Multiply in the scale of a batch norm that follows, as the "
                                      "published data base does.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@filters_app.command("collect")
def collect(specs: Specs, db: Db, weights: Weights = [], folded: Folded = False,  # noqa: B006  # typer copies
            task: Annotated[str, typer.Option("--task", help="What the models were trained for (default: the kind of "
                                              "their output).")] = "",
            dataset: Annotated[str, typer.Option("--dataset", help="What they were trained on.")] = "",
            training: Annotated[str, typer.Option("--training", help="How, say robust (default: trained or random)."
                                                  )] = "",
            architecture: Annotated[str, typer.Option("--architecture", help="Their family (default: the class of the "
                                                      "network).")] = "",
            device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "cpu",
            seed: Seed = 0, quiet: Quiet = False) -> None:
    """Take every square convolution of models into a database; what is there already is not taken again."""
    from filterdb import store

    bad = 0
    told = {"task": task, "dataset": dataset, "training": training, "architecture": architecture}
    for spec, own in zip(specs, weights_of(specs, weights), strict=True):
        try:
            for one in _collected(spec, own, db, folded, device, seed, told):
                if not quiet:
                    typer.echo(_line(one))
        except XaiError as problem:
            if len(specs) == 1:
                raise
            bad += 1
            typer.echo(f"{spec}: {problem}", err=True)
    there = store.folders(db) if bad < len(specs) else []
    hurt = [said for folder in there for said in store.damage(folder).values()]
    for said in hurt:
        typer.echo(said, err=True)
    if bad or hurt:
        raise typer.Exit(1)


def weights_of(specs: Sequence[str], weights: Sequence[str]) -> list[str | None]:
    """The weights of each model: one for all, or one each; None for its own."""
    if len(weights) not in (0, 1, len(specs)):
        raise error("--weights", f"given once, or once for each of the {len(specs)} models", f"{len(weights)} times",
                    'Say "own" for a model with its own weights')
    each = list(weights) * (len(specs) if len(weights) == 1 else 1) if weights else [""] * len(specs)
    return [None if text in ("", "own") else text for text in each]


def _collected(spec: str, weights: str | None, db: Path, folded: bool, device: str, seed: int,
               told: dict[str, str]) -> Iterator[Collected]:
    from filterdb.published import read_published
    from filterdb.store import collect as take
    from xai.zoo.loading import load
    from xai.zoo.shipped import card

    if spec.lower().endswith(HDF5):
        yield from read_published(spec, db)
        return
    model = load(spec, weights=weights, device=device, seed=seed)
    source, _, name = model.spec.partition(":")
    if source == "xai" and not told["dataset"]:
        found = card(name.partition("?")[0])
        told = {**told, "dataset": str(found["data"]["name"]).partition(":")[0] if found else ""}
    yield take(model, db, folded=folded, **told)


def _line(one: Collected) -> str:
    left = ", ".join(f"{count} {why}" for why, count in one.left_out.items())
    return (f"{one.spec}: {one.filters:,} filters of {one.layers} layers{f', left out: {left}' if left else ''} "
            f"{'->' if one.new else 'already in'} {one.folder}")


@filters_app.command("query")
def query(db: Db, sql: Annotated[str, typer.Argument(help="DuckDB SQL over the views layers, left_out, filters, sums, "
                                                     "by_task, by_depth, by_architecture, by_training (default: a "
                                                     "summary).")] = "",
          json_: Json = False, csv: Annotated[bool, typer.Option("--csv", help="Print as CSV.")] = False,
          check: Annotated[bool, typer.Option("--check", help="Compare the hashes of all files first.")] = False,
          hdf5: Annotated[Path | None, typer.Option("--hdf5", help="Also write the 3 x 3 filters to this HDF5 file, in "
                                                    "the published layout.")] = None) -> None:
    """Ask a filter database in SQL, or for a summary."""
    from filterdb.database import GROUPS
    from filterdb.database import open as open_database
    from filterdb.published import export

    database = open_database(db, check)
    if hdf5 is not None:
        typer.echo(f"{export(database, hdf5):,} filters -> {hdf5}", err=True)
    for i, text in enumerate([sql] if sql else [f"FROM {view}" for view in GROUPS]):
        names, rows = database.sql(text)
        if i and not json_:
            typer.echo("")
        _print(names, rows, json_, csv)
    _damaged(database)


def _print(names: list[str], rows: list[tuple[Any, ...]], as_json: bool, as_csv: bool) -> None:
    if as_json:
        typer.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows], default=str, indent=1))
    elif as_csv:
        import csv

        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([names, *rows])
    else:
        cells = [names, *([f"{v:.4g}" if isinstance(v, float) else "-" if v is None else str(v) for v in row]
                          for row in rows)]
        wide = [max(len(row[i]) for row in cells) for i in range(len(names))]
        for row in cells:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip())


def _damaged(database: Database) -> None:
    """Name what was left out, and leave with the code that says so."""
    for said in database.damaged.values():
        typer.echo(f"Left out: {said}", err=True)
    if database.damaged:
        raise typer.Exit(1)


@filters_app.command("shift")
def shift(groups: Annotated[list[str] | None, typer.Argument(help="Two or more groups: with --db specs or conditions "
                                                             'such as "training = \'random\'", without it model '
                                                             "specs.")] = None,
          db: Annotated[Path | None, typer.Option("--db", help="Folder of the filter database (default: the named "
                                                  "models alone).")] = None,
          by: Annotated[str, typer.Option("--by", help="Compare the values of a column instead: task, training, "
                                          "architecture, dataset, decile, spec, model, precision, depthwise.")] = "",
          where: Annotated[str, typer.Option("--where", help="With --by: only layers that this condition holds for."
                                             )] = "",
          k: Annotated[int, typer.Option("--size", min=2, help="Filters of this many weights a side.")] = 3,
          basis: Annotated[str, typer.Option("--basis", help="dct, or fit: the principal components of all filters."
                                             )] = "dct",
          draws: Annotated[int, typer.Option("--draws", min=20, help="Random draws of each floor.")] = 100,
          weights: Weights = [], folded: Folded = False,  # noqa: B006  # typer copies
          out: Annotated[str, typer.Option("--out", help="Folder to write (default: xai-out/ and a telling name)."
                                           )] = "",
          seed: Seed = 0, open_: Open = False,
          quiet: Quiet = False, json_: Json = False) -> None:
    """Compare groups of filters: drift beside its noise floors, coefficients, phase space, components. One page."""
    from filterdb.database import open as open_database
    from filterdb.shift import groups_by, named_groups
    from filterdb.shift import shift as compared
    from xai.result import dump_json

    if basis not in ("dct", "fit"):
        raise error("--basis", "dct or fit", repr(basis), "dct needs no data")
    if bool(by) == bool(groups) or (by and db is None):
        raise error("what is compared", "two or more groups, or a column with --by and --db", "both or neither",
                    "For example: xai filters shift --db filters --by training")
    with contextlib.ExitStack() as stack:
        if db is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xai-filters-")))
            database, made = _of_specs(groups or [], weights, place, folded, seed, k)
        else:
            database = open_database(db)
            made = groups_by(database, by, k, where) if by else named_groups(database, groups or [], k)
        result = compared(database, made, basis=basis, seed=seed, draws=draws,
                          command=shlex.join(["xai", *sys.argv[1:]]))
    page = _write(result, out, made)
    if json_:
        typer.echo(dump_json(result.record()[0]), nl=False)
    elif not quiet:
        typer.echo(str(page))
    if open_:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    _damaged(database)


def _of_specs(specs: Sequence[str], weights: Sequence[str], place: Path, folded: bool, seed: int,
              k: int) -> tuple[Database, list[Group]]:
    """Models that are in no database: they are collected into a passing one."""
    from dataclasses import replace

    from filterdb.database import open as open_database
    from filterdb.shift import named_groups

    told = {"task": "", "dataset": "", "training": "", "architecture": ""}
    keys, names = [], []
    for spec, own in zip(specs, weights_of(specs, weights), strict=True):
        for one in _collected(spec, own, place, folded, "cpu", seed, told):
            keys.append(one.folder.name.removeprefix("model="))
            names.append(f"{one.spec} ({own or 'own'})" if len(set(specs)) < len(specs) else one.spec)
    database = open_database(place)
    return database, [replace(group, name=name) for group, name in zip(named_groups(database, keys, k), names,
                                                                        strict=True)]


def _write(result: Result, out: str, groups: Sequence[Group]) -> Path:
    from xai.job import Job, run_id
    from xai.run import Explanation, plain, write

    digest = run_id([Job(spec="+".join(group.name for group in groups), method=result.analyzer, version=result.version,
                         weights_hash="+".join(sorted({"/".join(map(str, e.key)) for g in groups for e in g.entries})),
                         pictures=(), geometry="", parameters=result.parameters, target="",
                         seed=result.provenance.seed)])
    telling = plain("-".join(group.name for group in groups)) if len(groups) == 2 else f"{len(groups)}-groups"
    folder = Path(out) if out else Path("xai-out") / f"filters-{telling}-{digest}"
    write(Explanation(results=[result]), folder)
    return folder / "index.html"
