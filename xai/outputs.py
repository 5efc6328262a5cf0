"""Find and replace tensors inside whatever a module returns: a tensor, or any nesting of tuples, dicts, dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from xai.errors import XaiError


def tensors(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside `output` with its path, in order: "" for the tensor itself, "[0]", "['a'][1]", ".field".

    torch's pytree spells paths the same way, but it takes a dataclass and some libraries' mappings for leaves.
    """
    if isinstance(output, Tensor):
        yield path, output
        return
    for key, value in _children(output):
        yield from tensors(value, path + key)


def pick(output: Any, path: str) -> Tensor:
    """The tensor at `path`. Raises XaiError if there is none."""
    for found, tensor in tensors(output):
        if found == path:
            return tensor
    known = ", ".join(repr(found) for found, _ in tensors(output)) or "no tensor at all"
    raise XaiError(f"The place in the output must be one of {known}; got {path!r}. Name one of these.")


def put(output: Any, path: str, tensor: Tensor) -> Any:
    """`output` with the tensor at `path` replaced; containers on the way are copied, everything else is shared."""
    if path == "":
        return tensor
    for key, value in _children(output):
        if path.startswith(key) and any(found == path for found, _ in tensors(value, key)):
            return _with_child(output, key, put(value, path[len(key) :], tensor))
    raise XaiError(f"The place in the output must exist; got {path!r}. Call tensors(output) to list the places.")


def _children(output: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(output, Mapping):
        yield from ((f"[{key!r}]", value) for key, value in output.items())
    elif isinstance(output, tuple | list):
        yield from ((f"[{index}]", value) for index, value in enumerate(output))
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        yield from ((f".{field.name}", getattr(output, field.name)) for field in dataclasses.fields(output))


def _with_child(output: Any, key: str, child: Any) -> Any:
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)  # keeps the class: a ModelOutput stays one
        for name in output:
            if f"[{name!r}]" == key:
                changed[name] = child
        return changed
    if isinstance(output, tuple | list):
        items = [child if f"[{index}]" == key else value for index, value in enumerate(output)]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    return dataclasses.replace(output, **{key[1:]: child})
