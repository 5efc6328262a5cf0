"""The names of models, read from the code of torchvision and timm without importing it, and near names for a typo."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from xai.errors import XaiError, error, near
from xai.zoo.shipped import SHIPPED
from xai.zoo.spec import SOURCES

LISTED = ("xai", "torchvision", "timm")
_ENTRY = re.compile(r"^@register_model(?:\(\))?[^\n]*\n(?:@[^\n]*\n)*def (\w+)\(", re.MULTILINE)


@functools.cache
def names(source: str) -> tuple[str, ...]:
    """All model names of a source of LISTED, sorted (shipped ones in their own order); () where it is not installed."""
    if source == "xai":
        return tuple(SHIPPED)
    found = importlib.util.find_spec(source)
    if found is None or found.origin is None:
        return ()
    files = (Path(found.origin).parent / "models").glob("*.py")
    return tuple(sorted({name for file in files for name in _ENTRY.findall(file.read_text(encoding="utf-8"))}))


def list_models(source: str | None = None, pattern: str | None = None) -> list[str]:
    """What `xai models list` shows: the canonical specs of the shipped models, torchvision's and timm's.

    pattern: part of a name, or a wildcard such as `vit_*`. Raises XaiError for a source that has no list.
    """
    if source is not None and source not in LISTED:
        raise error(
            "the source of a listing",
            f"one of {', '.join(LISTED)}",
            repr(source),
            "The others are named one by one: " + ", ".join(s for s in SOURCES if s not in LISTED),
        )
    chosen = LISTED if source is None else (source,)
    return [f"{s}:{name}" for s in chosen for name in names(s) if _matches(name, pattern)]


def _matches(name: str, pattern: str | None) -> bool:
    if not pattern:
        return True
    wild = any(letter in pattern for letter in "*?[")
    return fnmatchcase(name.lower(), pattern.lower()) if wild else pattern.lower() in name.lower()


def find(name: str) -> str:
    """The source that a bare name belongs to: shipped, then torchvision, then timm (whose names may carry a tag).

    Raises XaiError with near names where none knows it.
    """
    for source in LISTED:
        if (name.partition(".")[0] if source == "timm" else name) in names(source):
            return source
    raise unknown(name)


def unknown(name: str, sources: Iterable[str] = LISTED) -> XaiError:
    """The error for a name that no source knows, with near names from the sources given."""
    offers: list[str] = []
    for source in sources:
        known = names(source)
        wanted = name.partition(".")[0] if source == "timm" else name
        offers += [f"{source}:{found}" for found in near(wanted, known, 3)]
    if name.endswith(".py") or Path(name).suffix == ".py":
        do = f"For your own code write file:{name}:NAME, NAME being a function that returns the network"
    elif Path(name).exists():
        do = f"The path exists: a program ends in .pt2, .ts or .onnx; a folder of transformers is hf:{name}"
    else:
        do = f"Did you mean {', '.join(offers[:6])}?" if offers else "`xai models list` names them"
    holders = [{"xai": "this package", "torchvision": "torchvision", "timm": "timm"}[source] for source in sources]
    where = "the name of a model of " + " or ".join(filter(None, (", ".join(holders[:-1]), holders[-1])))
    return error("the model", where, repr(name), do)
