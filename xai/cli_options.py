"""The options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from xai import catalog
from xai.errors import error


def method_names(incomplete: str) -> list[str]:
    """For the shell: the methods that begin like that."""
    return [name for name in catalog.entries() if name.startswith(incomplete)]


def model_names(incomplete: str) -> list[str]:
    """For the shell: the shipped networks that begin like that."""
    from xai.zoo.names import list_models

    return [name for name in list_models("xai") if name.startswith(incomplete)]


def _seed(text: str | int) -> int:
    try:
        return int(text)
    except ValueError:
        raise error("the seed", "a whole number from 0", repr(text), "Give one with --seed") from None


Model = Annotated[list[str], typer.Option("--model", "-m", help="Model spec; repeat for several.",
                                          autocompletion=model_names)]
Method = Annotated[list[str], typer.Option("--method", help="Method, or several separated by commas.",
                                           autocompletion=method_names)]
Weights = Annotated[list[str], typer.Option("--weights", help='Weights file (safetensors or state dict), or "random".')]
TargetText = Annotated[str, typer.Option("--target",
                                         help='top1, top3, class:281, a class name, label, "a - b", rank:2.')]
OwnTarget = Annotated[str | None, typer.Option("--target", help="What is explained, as for `explain` (default: what "
                                              "the method explains by itself: top1, of localisation the label).")]
Setting = Annotated[list[str], typer.Option("--set", help="A parameter, method.key=value or key=value; repeat.")]
Layer = Annotated[str, typer.Option("--layer", help="Layer to look at; auto asks the network.")]
Out = Annotated[str, typer.Option("--out", help="Folder to write (default: xai-out/ and a telling name).")]
Save = Annotated[str, typer.Option("--save", help="Also export maps: npy, png, overlay, separated by commas.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Precision = Annotated[str, typer.Option("--precision",
                                        help="float32, float64, bfloat16, float16 (default: the weights' own).")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", parser=_seed, metavar="INTEGER")]
Memory = Annotated[str, typer.Option("--memory", help="Memory budget such as 4G (default: half of what is free).")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network for methods of many forwards: half a "
                                       "minute of building, then faster.")]
Evidence = Annotated[str, typer.Option("--evidence", help="How much each map is checked: off, quick (32 forwards a "
                                       "map, or half of the method's own), full.")]
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON on standard output.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost; run nothing.")]
