"""The record of one analysis and of one run: result.json, arrays.safetensors and run.json, written and read back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
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
    """A check with its number, its threshold, and a sentence; `picture` is the hash it speaks of (None: of all).
    `passed` None: it could not be made, and the sentence says why."""

    name: str
    value: float | None
    threshold: float | None
    passed: bool | None
    sentence: str
    advice: str = ""
    picture: str | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What it took: forwards and backwards in pictures (those of the health checks apart), wall seconds, peak memory in
    bytes (None where unknown). Of several methods in one command each counts the forward that they share."""

    forwards: int = 0
    backwards: int = 0
    check_forwards: int = 0
    check_backwards: int = 0
    seconds: float = 0.0
    peak_memory: int | None = None

    @property
    def work(self) -> int:
        """Passes but those of the checks, in forwards; a backward costs about two."""
        return self.forwards + 2 * self.backwards


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
        """Write both files into an existing folder. Raises XaiError for what `load` would not read back."""
        record, arrays = self.record()
        try:
            _adapter().validate_python(_fill(record, arrays))
        except ValueError as problem:
            raise error(f"the result of {self.analyzer}", "made of what a record can hold", _fault(problem),
                        "This is a mistake in the analyzer; tell its author") from problem
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
        record = _known_version(path)
        arrays = _read_arrays(Path(folder) / "arrays.safetensors")
        try:
            return _adapter().validate_python(_fill(record, arrays))  # type: ignore[no-any-return]  # pydantic's Any
        except ValueError as problem:
            raise error(f"the record {path}", "a complete xai result", f"a damaged one: {_fault(problem)}",
                        "Make it again") from problem

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

        try:
            return TypeAdapter(cls).validate_python(_known_version(folder / "run.json"))
        except ValueError as problem:
            raise error(f"the record {folder / 'run.json'}", "that of an xai run", f"a damaged one: {_fault(problem)}",
                        "Make it again") from problem


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
    document["properties"]["schema_version"] = {"const": SCHEMA_VERSION, "type": "integer", "title": "Schema Version"}
    document["required"].append("schema_version")
    for definition in document["$defs"].values():  # a panel without its kind could be taken for another
        if "kind" in definition["properties"]:
            definition["required"] = sorted({*definition["required"], "kind"})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}


def _known_version(path: Path) -> dict[str, Any]:
    """The JSON object of a record; raises XaiError where its schema version is missing or newer than this code."""
    record = read_json(path)
    version = record.get("schema_version", 0) if isinstance(record, dict) else 0
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise error(f"the record {path}", f"of schema version 1 to {SCHEMA_VERSION}", version,
                    "Read it with the version of xai that wrote it, or a newer one")
    return record  # type: ignore[no-any-return]  # a dict by the line above


def _fault(problem: ValueError) -> str:
    """The first thing that is wrong, in a line; of the ten panel kinds only the one that the record names counts."""
    found: list[Any] = getattr(problem, "errors", list)()
    if not found:
        return str(problem)
    other = {e["loc"][:-1] for e in found if e["loc"][-1:] == ("kind",)}
    first = next((e for e in found if e["loc"][:3] not in other), None)
    if first is None:
        return f"{'.'.join(map(str, found[0]['loc'][:2]))} is of no known kind"
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"


def dump_json(value: Any) -> str:
    """Indented UTF-8 JSON with keys in the order of the types, a final newline, and no NaN."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")  # stray bytes of a file name come as lone surrogates


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises XaiError where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise error("the folder", f"one that xai wrote, with a {path.name}", path.parent,
                    "Name a folder under xai-out") from None
    except (OSError, ValueError) as problem:
        raise error(f"the record {path}", "readable JSON", f"a damaged file ({problem})", "Make it again") from problem


def _plain(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """The JSON form of dataclasses, containers and numbers; arrays go to `arrays` under their dotted path."""
    if isinstance(value, np.ndarray):
        arrays[name] = own = np.asarray(value, dtype=value.dtype.newbyteorder("="), order="C")
        return {"array": name, "dtype": str(own.dtype), "shape": list(own.shape)}
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
    """The inverse of `_plain` for array references; ValueError where the arrays are not those that were written."""
    if isinstance(value, dict):
        if set(value) == {"array", "dtype", "shape"}:
            found = arrays.get(str(value["array"]))
            if found is None or [str(found.dtype), list(found.shape)] != [value["dtype"], value["shape"]]:
                there = "missing" if found is None else f"{found.dtype} of shape {list(found.shape)}"
                wanted = f"{value['dtype']} of shape {value['shape']}"
                raise ValueError(f"the array {value['array']} is {there}, not {wanted}")
            return found
        return {k: _fill(v, arrays) for k, v in value.items()}
    return [_fill(v, arrays) for v in value] if isinstance(value, list) else value


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write named arrays as safetensors (no code can hide in it)."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(arrays, path)
        path.chmod(0o644)  # save_file lets nobody else read it
    except SafetensorError as problem:  # so it tells that the disk is full
        told = re.search(r"os error (\d+)", str(problem))
        if told is None:
            raise
        raise OSError(int(told[1]), os.strerror(int(told[1]))) from problem


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
    Raises XaiError where the place cannot be written, the disk is full, or the folder holds files but no record.
    """
    folder = Path(folder)
    folder = folder.resolve() if folder.is_symlink() else folder
    new: Path | None = None
    above = [parent for parent in folder.parents if not parent.exists()]
    try:
        _refuse_foreign(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}-", suffix=".part", dir=folder.parent))
        new.chmod(0o755)
        yield new
        _swap(new, folder)
    except OSError as problem:
        raise _unwritable(folder, problem) from problem
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)
        for parent in above:  # those made for nothing
            with contextlib.suppress(OSError):
                parent.rmdir()


def check_place(folder: Path) -> None:
    """Raise XaiError now for a place that `atomic_folder` would refuse after all the work."""
    try:
        _refuse_foreign(folder)
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(20, "a file of that name stands there")
        nearest = next(parent for parent in folder.absolute().parents if parent.exists())
        with tempfile.TemporaryDirectory(prefix=".xai-", dir=nearest):
            pass
    except OSError as problem:
        raise _unwritable(folder, problem) from problem


def _unwritable(folder: Path, problem: OSError) -> XaiError:
    return XaiError(f"the output folder must be writable; got {folder}: {problem.strerror or problem}. "
                    "Name another place with --out, or make room there.")


def _refuse_foreign(folder: Path) -> None:
    """A folder is replaced whole: one with other people's files must never be."""
    ours = any((folder / name).exists() for name in ("result.json", "run.json"))
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        raise error("the output folder", "new, empty, or one that xai wrote", f"{folder}, which holds other files",
                    "Name another place with --out")


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
    except BaseException:  # Ctrl-C too must not cost the older one
        os.replace(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
