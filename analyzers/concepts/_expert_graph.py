"""The expert graph: which parts speak for which classes, and which against them; read from JSON or from annotations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xai.errors import did_you_mean, error
from xai.model import Model
from xai.targets import need_class

KEYS = ("classes", "otherwise")
SHAPE = '{"classes": {"gothic": {"pointed arch": 1, "round arch": -1}}}'
LARGEST = 16 * 2**20  # bytes of a file that is read


@dataclass(frozen=True)
class ExpertGraph:
    """parts and classes by name, `numbers` the classes' numbers in the model, `sign` (F, K): +1, -1 or 0 (unknown)."""

    parts: tuple[str, ...]
    classes: tuple[str, ...]
    numbers: tuple[int, ...]
    sign: Tensor


def read_graph(file: str, model: Model) -> ExpertGraph:
    """The graph of a JSON file, for the classes of a model. Raises XaiError with the key that is wrong."""
    table, otherwise = _table(file)
    classes = tuple(table)
    parts = tuple(dict.fromkeys(part for row in table.values() for part in row))
    sign = torch.full((len(parts), len(classes)), otherwise, dtype=torch.int8)
    for c, row in enumerate(table.values()):
        for part, value in row.items():
            sign[parts.index(part), c] = value
    numbers = tuple(_number(name, model, file) for name in classes)
    if len(set(numbers)) < len(numbers):
        raise error(f"{_short(file)}: classes", "different classes of the model", ", ".join(classes),
                    "Name each class once")
    return ExpertGraph(parts, classes, numbers, sign)


def _number(name: str, model: Model, file: str) -> int:
    try:
        return need_class(name, model.labels, model.head.size)
    except Exception as problem:
        hint = did_you_mean(name, model.labels or ()) or "`xai models info SPEC --json` lists the class names"
        raise error(f"{_short(file)}: classes.{name}", "a class of the model, by name or as class:NUMBER", repr(name),
                    hint) from problem


def graph_of(shown: Mapping[int, Set[str]], model: Model) -> ExpertGraph:
    """The graph that annotations tell: a part speaks for the classes whose pictures show it; nothing else is known.
    shown: class number -> its pictures' parts."""
    numbers = tuple(sorted(shown))
    parts = tuple(sorted({part for row in shown.values() for part in row}))
    sign = torch.tensor([[int(part in shown[c]) for c in numbers] for part in parts], dtype=torch.int8)
    return ExpertGraph(parts, tuple(model.class_name(c) for c in numbers), numbers,
                       sign.view(len(parts), len(numbers)))


def _table(file: str) -> tuple[dict[str, dict[str, int]], int]:
    data = _json(file)
    name = _short(file)
    if not isinstance(data, dict):
        raise error(name, f"a JSON object as {SHAPE}", type(data).__name__, "Write it so")
    for key in data:
        if key not in KEYS:
            raise error(f"{name}: {key!r}", f"one of the keys {', '.join(KEYS)}", "another key",
                        did_you_mean(str(key), KEYS) or "Leave it out")
    otherwise = _sign(data.get("otherwise", 0), f"{name}: otherwise", (0, -1))
    table = data.get("classes")
    if not isinstance(table, dict) or not table:
        raise error(f"{name}: classes", f"an object with a key for each class, as in {SHAPE}", _said(table),
                    "Name at least one class with its parts")
    for kind, row in table.items():
        if not isinstance(row, dict):
            raise error(f"{name}: classes.{kind}", "an object of parts and signs", _said(row),
                        f"Write it as in {SHAPE}")
        for part, value in row.items():
            row[part] = _sign(value, f"{name}: classes.{kind}.{part}", (1, -1, 0))
    if not any(value for row in table.values() for value in row.values()):
        raise error(f"{name}: classes", "an object that links at least one part and class", "no part with a sign",
                    f"Write 1 or -1, as in {SHAPE}")
    return table, otherwise


def _sign(value: Any, what: str, allowed: tuple[int, ...]) -> int:
    if isinstance(value, bool) or value not in allowed:
        raise error(what, f"one of {', '.join(map(str, allowed))}", _said(value),
                    "1: the part speaks for the class, -1: against it, 0: nothing is known")
    return int(value)


def _json(file: str) -> Any:
    path, name = Path(file), _short(file)
    try:
        if path.stat().st_size > LARGEST:
            raise error(name, f"at most {LARGEST // 2**20} MB", f"{path.stat().st_size} bytes", "Name the graph's file")
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=lambda pairs: _once(pairs, name))
    except OSError as problem:
        raise error("knowledge_graph.graph", "a JSON file", f"{file}: {problem.strerror or problem}",
                    f"Write one as {SHAPE}") from problem
    except (ValueError, RecursionError) as problem:
        raise error(name, "a JSON file", f"one that cannot be read ({str(problem)[:120]})", "Correct it") from problem


def _once(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise error(f"{name}: the key {key!r}", "written once in its object", "it twice", "Leave one out")
        found[key] = value
    return found


def _short(file: str) -> str:
    return Path(file).name


def _said(value: Any) -> str:
    return "nothing" if value is None else f"{json.dumps(value)[:60]}"
