"""The commands `xai fourier images|model`: other words for `xai analyze fourier_images|fourier_model`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

Set = Annotated[list[str], typer.Option("--set", help="A parameter of the method, key=value; repeat.")]
Out = Annotated[str, typer.Option("--out", help="Folder to write (default: xai-out/ and a telling name).")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Memory = Annotated[str, typer.Option("--memory", help="Memory budget such as 4G (default: half of what is free).")]
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON on standard output.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost; run nothing.")]


def fourier_app(analyze: Callable[..., None]) -> typer.Typer:
    """The group of commands; each calls `analyze`, the function behind `xai analyze`."""
    app = typer.Typer(help="Frequencies of pictures and of models.", no_args_is_help=True, rich_markup_mode=None)

    @app.command("images")
    def images(pictures: Annotated[str, typer.Argument(metavar="DIR", help="Pictures: a folder, Parquet, a file.")],
               others: Annotated[str, typer.Argument(metavar="[DIR2]", help="Those to compare with, if any.")] = "",
               npr: Annotated[bool, typer.Option("--npr", help="Neighbouring pixel relationships instead of spectra "
                                                               "(the method npr).")] = False,
               set_: Set = [], out: Out = "", seed: Seed = 0, open_: Open = False, quiet: Quiet = False,  # noqa: B006  # typer copies
               json_: Json = False, dry_run: Dry = False) -> None:
        """Spectra of the pictures in a folder; of two folders also what tells them apart."""
        analyze("npr" if npr else "fourier_images", data=[pictures, *([others] if others else [])], set_=set_, out=out,
                seed=seed, open_=open_, quiet=quiet, json_=json_, dry_run=dry_run)

    @app.command("model")
    def model(specs: Annotated[list[str], typer.Argument(metavar="SPEC...", help="Classifiers; two are compared.")],
              data: Annotated[list[str], typer.Option("--data", help="Pictures; with labels errors are counted.")],
              weights: Annotated[list[str], typer.Option("--weights", help='Weights file, or "random".')] = [],  # noqa: B006  # typer copies
              set_: Set = [], out: Out = "", device: Device = "auto", seed: Seed = 0, memory: Memory = "",  # noqa: B006  # typer copies
              open_: Open = False, quiet: Quiet = False, json_: Json = False, dry_run: Dry = False) -> None:
        """Errors of classifiers under each Fourier wave, what their gradients, filters and kernels say."""
        analyze("fourier_model", model=specs, data=data, weights=weights, set_=set_, out=out, device=device, seed=seed,
                memory=memory, open_=open_, quiet=quiet, json_=json_, dry_run=dry_run)

    return app
