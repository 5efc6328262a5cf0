"""Which analyzers there are, found by reading the files; only the one that is asked for is imported."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xai.errors import XaiError, did_you_mean, error

if TYPE_CHECKING:
    from xai.analyzer import Analyzer

NEEDS = {"Attribution": ("gradients", "images"), "Perturbation": ("forward", "images"),
         "Metric": ("forward", "images")}  # of a class that says nothing
FOLDER = Path(__file__).resolve().parent.parent / "analyzers"
GROUP = "xai.analyzers"


@dataclass(frozen=True)
class Field:
    """A parameter as the file writes it: name, default and help as text."""

    name: str
    default: str
    help: str


@dataclass(frozen=True)
class Entry:
    """An analyzer as its file describes it, read without importing it."""

    name: str
    kind: str
    module: str
    summary: str
    class_name: str = ""
    docstring: str = ""
    needs: tuple[str, ...] = ()
    fields: tuple[Field, ...] = ()


def entries() -> dict[str, Entry]:
    """All analyzers by name, those of this package and those registered under the entry-point group xai.analyzers.

    Raises XaiError where two bear the same name.
    """
    found = {entry.name: entry for entry in _own()}
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name in found:
            raise error(f"the analyzer {point.name}", "of a name of its own", f"one more from {point.value}",
                        "Uninstall the package that brings it, or ask its author to rename it")
        module = point.value.partition(":")[0]
        found[point.name] = Entry(point.name, "other", module, f"from {point.dist.name if point.dist else module}")
    return found


@cache
def _own() -> tuple[Entry, ...]:
    return tuple(sorted((_read(path) for path in FOLDER.glob("*/[!_]*.py")), key=lambda e: (e.kind, e.name)))


def _read(path: Path) -> Entry:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next(_classes(tree), None)
    if node is None:
        raise error(f"the file {path.name}", "one that holds an analyzer class", "none",
                    "Name files that hold none _name.py")
    docstring = ast.get_docstring(node) or ""
    needs = next((_strings(s.value) for s in node.body if isinstance(s, (ast.Assign, ast.AnnAssign))
                  and s.value is not None and _target(s) == "needs"),
                 next((NEEDS[b] for b in map(ast.unparse, node.bases) if b in NEEDS), ()))
    return Entry(path.stem, path.parent.name, f"analyzers.{path.parent.name}.{path.stem}", docstring.partition("\n")[0],
                 node.name, docstring, needs, tuple(_fields(node)))


def _classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    return (n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")
            and any("dataclass" in ast.unparse(d) for d in n.decorator_list) and n.bases)


def _target(statement: ast.Assign | ast.AnnAssign) -> str:
    target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
    return target.id if isinstance(target, ast.Name) else ""


def _strings(node: ast.expr) -> tuple[str, ...]:
    return tuple(sorted(n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)))


def _fields(node: ast.ClassDef) -> Iterator[Field]:
    for statement in node.body:
        call = statement.value if isinstance(statement, ast.AnnAssign) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "param":
            text = next((ast.literal_eval(a) for a in call.args[1:2]), "")
            yield Field(_target(statement), ast.unparse(call.args[0]), text)  # type: ignore[arg-type]  # an AnnAssign by the line above


def entry(name: str) -> Entry:
    """The entry of one analyzer; raises XaiError with near names."""
    known = entries()
    if name not in known:
        raise error("the method", "one of those that `xai methods list` shows", repr(name), did_you_mean(name, known) or
                    "Run `xai methods list`")
    return known[name]


def find(name: str) -> type[Analyzer]:
    """The class of one analyzer: imports its file alone."""
    chosen = entry(name)
    from xai.analyzer import Analyzer

    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name == name:
            loaded: type[Analyzer] = point.load()
            return loaded
    module = importlib.import_module(chosen.module)
    here = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Analyzer)
            and c.__module__ == module.__name__ and not c.__name__.startswith("_")]
    if len(here) != 1:
        raise XaiError(f"the file {chosen.module} must hold one analyzer; got {len(here)}. "
                       "Move the others to files of their own.")
    return here[0]


def make(methods: list[str], settings: dict[str, str]) -> list[Any]:
    """The analyzers for names, with settings `method.key` or `key` -> text.

    A bare key goes to every requested method that has it; a key that none has, or text that is no such value, raises
    XaiError.
    """
    classes = {name: find(name) for name in dict.fromkeys(methods)}
    fields = {name: {f.name: f for f in dataclasses.fields(cls)} for name, cls in classes.items()}
    chosen: dict[str, dict[str, Any]] = {name: {} for name in classes}
    for key, text in settings.items():
        method, _, field = key.rpartition(".")
        if method and method not in classes:
            raise error("a setting", f"for a requested method ({', '.join(classes)})", f"{key}={text}",
                        did_you_mean(method, classes) or "Drop it")
        holders = [name for name in classes if method in ("", name) and field in fields[name]]
        if not holders:
            known = sorted({f"{n}.{f}" for n in classes for f in fields[n]})
            raise error("a setting", f"one of {', '.join(known) or 'none (these methods have no parameters)'}",
                        f"{key}={text}", did_you_mean(key, known) or "`xai methods info NAME` lists them")
        for name in holders:
            chosen[name][field] = _value(text, fields[name][field], f"{name}.{field}")
    return [cls(**chosen[name]) for name, cls in classes.items()]


def split(text: str) -> list[str]:
    """Methods in one line at their commas; those in brackets part parameters: `gradcam,smoothgrad(samples=20,noise=1)`.
    """
    return [part.strip() for part in re.split(r",(?![^(]*\))", text) if part.strip()]


def parse(text: str) -> Analyzer:
    """The analyzer that `name` or `name(key=value, ...)` means; raises XaiError with near names."""
    match = re.fullmatch(r"\s*([^()\s]+)\s*(?:\((.*)\))?\s*", text)
    if match is None:
        raise error("a method", "written as name or name(key=value, ...)", repr(text), "Check its brackets")
    settings = {}
    for pair in filter(None, map(str.strip, (match[2] or "").split(","))):
        key, equals, value = pair.partition("=")
        if not equals:
            raise error("a parameter in brackets", "of the form key=value", repr(pair), f"Check {text!r}")
        settings[f"{match[1]}.{key.strip()}"] = value.strip()
    made: Analyzer = make([match[1]], settings)[0]
    return made


def _value(text: str, field: Any, name: str) -> Any:
    kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)  # text or a type, as it was written
    try:
        if kind.startswith("bool"):
            return {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}[text.lower()]
        if "None" in kind and text.lower() in ("none", "null"):
            return None
        return int(text) if kind.startswith("int") else float(text) if kind.startswith("float") else text
    except (ValueError, KeyError):
        raise error(name, f"of type {kind}", repr(text), f"It is {field.metadata.get('help', 'a parameter')}") from None
