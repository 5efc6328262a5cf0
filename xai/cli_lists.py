"""The commands that list and describe models and methods."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from xai import catalog
from xai.cli_diagram import models_diagram
from xai.cli_models import models_explore

models_app = typer.Typer(help="List and describe models.", no_args_is_help=True, rich_markup_mode=None)
methods_app = typer.Typer(help="List and describe methods.", no_args_is_help=True, rich_markup_mode=None)
models_app.command("explore")(models_explore)
models_app.command("diagram")(models_diagram)
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@methods_app.command("list")
def methods_list(json_: Json = False) -> None:
    """All methods with one line each."""
    found = catalog.entries().values()
    if json_:
        typer.echo(json.dumps([{"name": e.name, "kind": e.kind, "summary": e.summary, "needs": e.needs}
                               for e in found], indent=1))
        return
    kind = ""
    for entry in found:
        if entry.kind != kind:
            kind = entry.kind
            typer.echo(f"{kind}:")
        typer.echo(f"  {entry.name:22} {entry.summary}")


@methods_app.command("info")
def methods_info(name: str, json_: Json = False) -> None:
    """What a method computes, its parameters and its source."""
    entry = catalog.entry(name)
    if json_:
        typer.echo(json.dumps(asdict(entry), indent=1))
        return
    typer.echo(f"{entry.name} ({entry.kind})\n\n{entry.docstring}\n\nNeeds     {', '.join(entry.needs)}\n\n"
               f"Parameters (--set {name}.KEY=VALUE)")
    for field in entry.fields:
        typer.echo(f"  {field.name} = {field.default}\n      {field.help}")
    if not entry.fields:
        typer.echo("  none")


@models_app.command("list")
def models_list(pattern: Annotated[str, typer.Argument(help="Only names that hold this text.")] = "",
                source: Annotated[str, typer.Option("--source", help="xai, torchvision or timm.")] = "",
                json_: Json = False) -> None:
    """The models that can be named."""
    from xai.zoo.names import list_models

    names = list_models(source or None, pattern or None)
    typer.echo(json.dumps(names, indent=1) if json_ else "\n".join(names))


@models_app.command("info")
def models_info(spec: str, weights: Annotated[str, typer.Option("--weights", help='Weights file, or "random".')] = "",
                layer: Annotated[str, typer.Option("--layer", help="Layer to look at.")] = "auto",
                json_: Json = False) -> None:
    """What the resolver found out about a model, with its reasons."""
    from xai.result import dump_json
    from xai.zoo.loading import load

    model = load(spec, weights=weights or None)
    record = asdict(model.record(layer))
    views = {view.name: view for view in (model.layers() if "hooks" in model.capabilities else ())}
    if json_:
        layers = [{"name": v.name, "grid": v.grid, "channels": v.channels} for v in views.values()]
        typer.echo(dump_json({**record, "labels": model.labels, "layers": layers}), nl=False)
        return
    for key, value in record.items():
        typer.echo(f"{key.replace('_', ' '):22} "
                   f"{value if not isinstance(value, tuple) else ', '.join(map(str, value)) or '-'}")
    more = f", ... (all {len(model.labels)}: --json)" if model.labels and len(model.labels) > 10 else ""
    typer.echo(f"{'class names':22} {', '.join(model.labels[:10]) + more if model.labels else '-'}")
    for i, view in enumerate(views.values()):
        typer.echo(f"{'' if i else 'layers':22} {view.name:40} {view.grid[0]:4} x {view.grid[1]:<4} "
                   f"{view.channels:5} channels")
