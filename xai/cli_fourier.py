"""The commands `xai fourier images|model`: other words for `xai analyze fourier_images|fourier_model`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from xai.cli_options import Device, Dry, Json, Memory, Open, Out, Quiet, Seed, Setting, Weights


def fourier_app(analyze: Callable[..., None]) -> typer.Typer:
    """The group of commands; each calls `analyze`, the function behind `xai analyze`."""
    app = typer.Typer(help="Frequencies of pictures and of models.", no_args_is_help=True, rich_markup_mode=None)

    @app.command("images")
    def images(pictures: Annotated[str, typer.Argument(metavar="DIR", help="Pictures: a folder, Parquet, a file.")],
               others: Annotated[str, typer.Argument(metavar="[DIR2]", help="Those to compare with, if any.")] = "",
               npr: Annotated[bool, typer.Option("--npr", help="Neighbouring pixel relationships instead of spectra "
                                                               "(the method npr).")] = False,
               set_: Setting = [], out: Out = "", seed: Seed = 0, open_: Open = False, quiet: Quiet = False,  # noqa: B006  # typer copies
               json_: Json = False, dry_run: Dry = False) -> None:
        """Spectra of the pictures in a folder; of two folders also what tells them apart."""
        analyze("npr" if npr else "fourier_images", data=[pictures, *([others] if others else [])], set_=set_, out=out,
                seed=seed, open_=open_, quiet=quiet, json_=json_, dry_run=dry_run)

    @app.command("model")
    def model(specs: Annotated[list[str], typer.Argument(metavar="SPEC...", help="Classifiers; two are compared.")],
              data: Annotated[list[str], typer.Option("--data", help="Pictures; with labels errors are counted.")],
              weights: Weights = [],  # noqa: B006  # typer copies
              set_: Setting = [], out: Out = "", device: Device = "auto", seed: Seed = 0, memory: Memory = "",  # noqa: B006  # typer copies
              open_: Open = False, quiet: Quiet = False, json_: Json = False, dry_run: Dry = False) -> None:
        """Errors of classifiers under each Fourier wave, what their gradients, filters and kernels say."""
        analyze("fourier_model", model=specs, data=data, weights=weights, set_=set_, out=out, device=device, seed=seed,
                memory=memory, open_=open_, quiet=quiet, json_=json_, dry_run=dry_run)

    return app
