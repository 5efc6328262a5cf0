"""Read a state dict from a file, without running code that the file may carry, and say what another file is instead."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xai.errors import XaiError, error

# Where training scripts keep the state dict, most usual first; a running average only where nothing else is there.
NESTS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "params",
    "weights",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema_model",
    "ema",
    "params_ema",
    "teacher",
    "student",
)
EXPECTED = "a .safetensors file, or a .pt, .pth or .ckpt file that holds a state dict"


@dataclass
class State:
    """A state dict, its file's `_metadata` (versions by module) if it has any, and what was noticed on the way."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def read_state(path: str | Path) -> State:
    """The state dict in a file. Raises XaiError where there is none, or where only running code would read it."""
    path = Path(path).expanduser()
    try:
        start = _start(path)
        if _is_safetensors(start):
            return _read_safetensors(path)
        _say_what_else(path, start)
        return _unwrapped(path, _load(path))
    except OSError as problem:
        raise error(
            "the weights",
            "a file that can be read",
            f"{path}: {problem.strerror or problem}",
            "Check the path and its permissions",
        ) from problem


def file_hash(path: str | Path, digits: int = 16) -> str:
    """The first hex digits of the file's sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:digits]


def is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive."""
    return any("/code/" in name or name.endswith("constants.pkl") for name in _members(path))


def is_exported(path: Path) -> bool:
    """Whether the file is a program saved by torch.export."""
    members = _members(path)
    return any(name.split("/")[-1] in ("archive_format", "serialized_exported_program.json") for name in members)


def _members(path: Path) -> list[str]:
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _start(path: Path) -> bytes:
    if path.is_dir():
        raise error("the weights", EXPECTED, f"the folder {path}", "Name the file in it")
    if not path.exists():
        raise error("the weights", "a file that exists, or random", str(path), "Check the path")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise error("the weights", EXPECTED, f"the empty file {path}", "Download or save it again")
    return start


def _is_safetensors(start: bytes) -> bool:
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as problem:
        raise error(
            "the weights", EXPECTED, f"{path}, which is damaged ({problem})", "Download or save it again"
        ) from problem
    if not tensors:
        raise error("the weights", EXPECTED, f"{path}, which holds no tensor", "Save the network's state_dict()")
    return State(tensors)


def _say_what_else(path: Path, start: bytes) -> None:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        raise error(
            "the weights", EXPECTED, f"the web page {path}", "Download the file itself, not the page that shows it"
        )
    if start.startswith(b"version https://git-lfs"):
        raise error("the weights", EXPECTED, f"{path}, a pointer of git-lfs", "Fetch the file with `git lfs pull`")
    if start.startswith(b"\x89HDF"):
        raise error("the weights", EXPECTED, f"the HDF5 file {path}", "Convert it to a state dict of PyTorch")
    if path.suffix.lower() == ".onnx":
        raise error("the weights", EXPECTED, f"the ONNX model {path}", f"It is a whole model: --model {path}")
    if is_torchscript(path):
        raise error("the weights", EXPECTED, f"the TorchScript program {path}", f"Name it as the model: --model {path}")
    if is_exported(path):
        raise error("the weights", EXPECTED, f"the exported program {path}", f"Name it as the model: --model {path}")
    members = _members(path)
    if members and not any(name.endswith("data.pkl") for name in members):
        raise error(
            "the weights",
            EXPECTED,
            f"the archive {path} with {members[0]}",
            "Save the network's state_dict() with torch.save",
        )


def _load(path: Path) -> Any:
    try:
        # training scripts put their command line, a Namespace, beside the weights: it holds plain values
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        wanted = re.search(r"(?:GLOBAL|function|class) ([\w.]+)", str(problem))
        if wanted and re.search(r"unsupported|not an allowed|blocked", str(problem), re.IGNORECASE):
            raise error(
                "the weights",
                "tensors that can be read without running code",
                f"{path}, a pickle that needs {wanted[1]}",
                "It was not opened. Save the network's state_dict(), best as .safetensors, where you trust the file",
            ) from problem
        raise _damaged(path, problem) from problem
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        UnicodeDecodeError,
    ) as problem:
        raise _damaged(path, problem) from problem


def _damaged(path: Path, problem: Exception) -> XaiError:
    first = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:160]
    return error(
        "the weights", EXPECTED, f"{path}, which is damaged or something else ({first})", "Download or save it again"
    )


def _unwrapped(path: Path, found: Any) -> State:
    notes: list[str] = []
    trail: list[str] = []
    while isinstance(found, dict) and not _is_state(found):
        nest = next((key for key in NESTS if isinstance(found.get(key), dict) and found[key]), None)
        if nest is None:
            break
        averages = [key for key in NESTS if "ema" in key and key != nest and key in found]
        if averages and "ema" not in nest:
            notes.append(f"the file also holds {averages[0]}, which was not used")
        trail.append(nest)
        found = found[nest]
    if not isinstance(found, dict) or not _is_state(found):
        held = (
            f"a dict of {', '.join(map(repr, list(found)[:4]))}"
            if isinstance(found, dict) and found
            else f"a {type(found).__name__}"
        )
        raise error("the weights", EXPECTED, f"{path}, which holds {held}", "Save the network's state_dict()")
    if trail:
        notes.insert(0, f"the state dict was found under {'.'.join(trail)!r} in {path.name}")
    metadata = getattr(found, "_metadata", None)
    return State({key: value for key, value in found.items() if isinstance(value, Tensor)}, metadata, notes)


def _is_state(found: dict[Any, Any]) -> bool:
    tensors = sum(isinstance(value, Tensor) for value in found.values())
    return tensors > 0 and tensors * 2 >= len(found) and all(isinstance(key, str) for key in found)
