"""The record of one analysis and of one run: result.json, arrays.safetensors and run.json, written and read back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from xai.errors import XaiError, error
from xai.panels import AnyPanel

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The identity of a model as the record keeps it."""

    spec: str
    weights_hash: str
    weights: str
    random_weights: bool = False
    runs_code: bool = False
    layer: str = ""
    layer_reason: str = ""
    grid: tuple[int, int] | None = None
    head: str = ""
    head_reason: str = ""
    preprocessing: str = ""
    preprocessing_reason: str = ""
    parameters: int = 0
    capabilities: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """The identity of a picture: name, hash of its pixels, size (height, width) in pixels, and label if known."""

    name: str
    hash: str
    size: tuple[int, int]
    target: str = ""
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A check with its number, its threshold, and a sentence; `picture` is the hash it speaks of (None: of all)."""

    name: str
    value: float | None
    threshold: float | None
    passed: bool
    sentence: str
    advice: str = ""
    picture: str | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What it took: forwards and backwards in pictures (those of the health checks apart), wall seconds, peak memory in
    bytes (None where unknown). Of several methods in one command each counts the forward that they share."""

    forwards: int = 0
    backwards: int = 0
    check_backwards: int = 0
    seconds: float = 0.0
    peak_memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the numbers come from: versions, device, threads, precision, seed, time, and the command to remake them."""

    command: str
    seed: int
    device: str
    precision: str
    threads: int
    created: str
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One analyzer on one subject, with its evidence.

    `load` reads every earlier schema version; `save` writes a folder whole or not at all.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"arbitrary_types_allowed": True}
    analyzer: str
    version: int
    title: str
    summary: str = ""
    reference: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    models: tuple[ModelRecord, ...] = ()
    images: tuple[ImageRecord, ...] = ()
    target: str = ""
    panels: tuple[AnyPanel, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    cost: Cost = field(default_factory=Cost)
    provenance: Provenance
    schema_version: int = SCHEMA_VERSION

    def save(self, folder: str | Path) -> Path:
        """Write result.json and arrays.safetensors into `folder` (replaced whole); return it."""
        with atomic_folder(folder) as new:
            self.write(new)
        return Path(folder)

    def write(self, folder: Path) -> None:
        """Write both files into an existing folder."""
        record, arrays = self.record()
        write_arrays(folder / "arrays.safetensors", arrays)
        (folder / "result.json").write_text(dump_json(record), encoding="utf-8")

    def record(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The JSON record, in which each array is a reference by name, and the arrays."""
        arrays: dict[str, np.ndarray] = {}
        record: dict[str, Any] = _plain(self, "", arrays)
        return record, arrays

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Read a result from its folder; raises XaiError where it is no result or was written by a newer version."""
        path = Path(folder) / "result.json"
        record = read_json(path)
        version = record.get("schema_version", 0) if isinstance(record, dict) else 0
        if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
            raise error(f"the record {path}", f"of schema version 1 to {SCHEMA_VERSION}", version,
                        "Read it with the version of xai that wrote it, or a newer one")
        arrays = _read_arrays(Path(folder) / "arrays.safetensors")
        try:
            return _adapter().validate_python(_fill(record, arrays))  # type: ignore[no-any-return]  # pydantic's Any
        except (ValueError, KeyError) as problem:
            raise error(f"the record {path}", "a complete xai result", "a damaged one", str(problem)) from problem

    def _repr_html_(self) -> str:
        from reports.page import fragment

        return fragment(self)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An input that could not be used, with the sentence that says why."""

    name: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """Several results side by side in one folder: each in the sub-folder named here, under one page and run.json."""

    title: str
    command: str
    results: tuple[str, ...]
    failures: tuple[Failure, ...] = ()
    interrupted: bool = False
    schema_version: int = SCHEMA_VERSION

    def write(self, folder: Path) -> None:
        """Write run.json into an existing folder."""
        (folder / "run.json").write_text(dump_json(_plain(self, "", {})), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Read run.json from a folder; a folder with one result.json reads as a run of one."""
        folder = Path(folder)
        if not (folder / "run.json").exists() and (folder / "result.json").exists():
            result = Result.load(folder)
            return cls(title=result.title, command=result.provenance.command, results=(".",))
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_python(read_json(folder / "run.json"))


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Result)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of result.json, generated from the types above."""
    from pydantic.json_schema import GenerateJsonSchema

    class Schema(GenerateJsonSchema):
        def is_instance_schema(self, schema: Any) -> dict[str, Any]:
            reference = {"array": {"type": "string"}, "dtype": {"type": "string"},
                         "shape": {"type": "array", "items": {"type": "integer"}}}
            return {"type": "object", "properties": reference, "required": list(reference), "title": "array reference"}

    document: dict[str, Any] = _adapter().json_schema(schema_generator=Schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}


def dump_json(value: Any) -> str:
    """Indented UTF-8 JSON with keys in the order of the types, a final newline, and no NaN."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")  # stray bytes of a file name come as lone surrogates


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises XaiError where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error("the folder", f"one that xai wrote, with a {path.name}", path.parent,
                    "Name a folder under xai-out") from None
    except (OSError, ValueError) as problem:
        raise error(f"the record {path}", "readable JSON", type(problem).__name__, str(problem)) from problem


def _plain(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """The JSON form of dataclasses, containers and numbers; arrays go to `arrays` under their dotted path."""
    if isinstance(value, np.ndarray):
        arrays[name] = np.ascontiguousarray(value)
        return {"array": name, "dtype": str(value.dtype), "shape": list(value.shape)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), f"{name}.{f.name}".lstrip("."), arrays)
                for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v, f"{name}.{k}", arrays) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v, f"{name}.{i}", arrays) for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _fill(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `_plain` for array references."""
    if isinstance(value, dict):
        if set(value) == {"array", "dtype", "shape"}:
            return arrays[value["array"]]
        return {k: _fill(v, arrays) for k, v in value.items()}
    return [_fill(v, arrays) for v in value] if isinstance(value, list) else value


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write named arrays as safetensors (no code can hide in it)."""
    from safetensors.numpy import save_file

    save_file(arrays, path)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as problem:
        raise error(f"the arrays {path}", "a readable safetensors file", type(problem).__name__,
                    "Make the result again with the command in its result.json") from problem


@contextlib.contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends well, and vanishes when it does not.

    An older folder is moved aside first, so a reader sees the old one, none, or the new one, never half of either.
    Raises XaiError where the place cannot be written or the disk is full.
    """
    folder = Path(folder)
    new: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}-", suffix=".part", dir=folder.parent))
        new.chmod(0o755)
        yield new
        _swap(new, folder)
    except OSError as problem:
        raise XaiError(f"the output folder must be writable; got {folder}: {problem.strerror or problem}. "
                       "Name another place with --out, or make room there.") from problem
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)


def _swap(new: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(new, folder)
        return
    if not folder.is_dir():
        raise NotADirectoryError(20, "a file of that name stands there", str(folder))
    aside = new.with_suffix(".old")
    os.replace(folder, aside)
    try:
        os.replace(new, folder)
    except OSError:
        os.replace(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
