"""The layout of the published CNN Filter DB (one HDF5 file): read into a database, and written from one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from filterdb.banks import Layer
from filterdb.database import Database
from filterdb.records import Entry, Facts
from filterdb.store import Collected, Pieces, key_of, write
from filterdb.sums import layer_sums
from xai.errors import error

LABELS = {"architecture": "Name", "task": "Task", "dataset": "Training-Dataset", "precision": "Precision"}


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as problem:
        raise error("the package h5py", "installed to read or write HDF5", "nothing",
                    'Run pip install "xai-toolkit[hdf5]"') from problem
    return h5py


# --- reading ---
def read_published(path: str | Path, database: str | Path) -> Iterator[Collected]:
    """Take every model of a published file into a database, one by one, as `collect` does: 3 x 3 filters, held layer by
    layer, read once for their hash and once more where that is new.

    Read are `/filters` (N, 3, 3) float64 or `/filter` (N, 9), and the table `/meta`, whose text columns are pickles: of
    those only strings and numbers are read, and nothing that they name is called. A value that float32 does not hold is
    rounded, and the layer's dtype is then "float64". Raises XaiError where the file has another layout.
    """
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            name = next((n for n in ("filters", "filter") if n in file), None)
            if name is None or "meta" not in file:
                raise ValueError(f"one with {', '.join(file) or 'nothing'}")
            meta, values = _meta(file["meta"]), file[name]
            models = np.asarray(meta["model_id"])
            for model in dict.fromkeys(models.tolist()):
                rows = np.flatnonzero(models == model)
                yield _one(values, {column: [cells[i] for i in rows] for column, cells in meta.items()}, rows,
                           f"{Path(path).name}:{model}", Path(database))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as problem:
        raise error(f"the file {path}", "HDF5 with /filters and /meta as in the CNN Filter DB", problem,
                    "Take the file dataset.h5 of that data base, unpacked") from problem


def _one(values: Any, meta: dict[str, list[Any]], rows: np.ndarray, spec: str, database: Path) -> Collected:
    def exact(i: int) -> np.ndarray:
        first, last = (int(end) for end in str(meta["filter_ids"][i]).split(":"))
        if not 0 <= first <= last < len(values):
            raise ValueError(f"filters {first} to {last} of {len(values)}")
        return np.asarray(values[first : last + 1]).reshape(-1, 9)

    digest = hashlib.sha256()
    for i in range(len(rows)):
        digest.update(exact(i).tobytes())
    hashed = digest.hexdigest()[:16]
    facts = Facts(spec=f"hdf5:{meta['model'][0]}" if "model" in meta else spec, training="unknown", weights_hash=hashed,
                  **{ours: _word(meta.get(theirs, [None])[0]) for ours, theirs in LABELS.items()})

    def pieces() -> Pieces:
        for i, row in enumerate(rows):
            filters = exact(i)
            single = filters.astype(np.float32)
            place = float(meta["conv_depth_norm"][i])
            layer = Layer(name=f"row {row}", op="Conv", k=3, depth=int(meta["conv_depth"][i]),
                          depth_norm=place if np.isfinite(place) else 0.0, n=len(single),
                          dtype="float32" if np.array_equal(single, filters) else "float64")
            yield Entry(facts, layer, layer_sums(single, 3)), single

    return write(database, facts.spec, key_of(hashed), pieces)


def _meta(group: Any) -> dict[str, list[Any]]:
    """The columns of the table, the index among them."""
    if "axis0" not in group:  # what `export` writes
        return {name: [_text(cell) for cell in column[...]] for name, column in group.items()}
    columns: dict[str, list[Any]] = {}
    for i, name in enumerate(("model_id", "conv_depth", "conv_depth_norm")):
        level, label = group[f"axis1_level{i}"][...], group[f"axis1_label{i}"][...]
        columns[name] = [_text(level[j]) if j >= 0 else float("nan") for j in label]
    for i in range(int(group.attrs["nblocks"])):
        block = group[f"block{i}_values"]
        values = _strings(bytes(np.asarray(block[0], np.uint8))) if _pickled(block) else block[...]
        for j, item in enumerate(group[f"block{i}_items"][...]):
            columns[_text(item)] = [_text(cell) for cell in np.asarray(values)[:, j]]
    return columns


def _pickled(block: Any) -> bool:
    return bool(block.ndim == 1 and block.dtype.kind == "O")


def _word(cell: Any) -> str:
    return cell if isinstance(cell, str) and cell else "unknown"


def _text(cell: Any) -> Any:
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "replace")
    return cell.item() if isinstance(cell, np.generic) else cell


@dataclass
class _Named:
    """What a pickle would have called or made; here it stays a name."""

    state: Any = None
    parts: list[Any] = field(default_factory=list)


_VALUES = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "SHORT_BINSTRING", "BINSTRING", "STRING",
           "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG",
           "BINFLOAT", "FLOAT"}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "EMPTY_LIST": [],
                              "EMPTY_DICT": {}}


def _strings(data: bytes) -> np.ndarray:
    """(rows, columns) of a pickled numpy array of strings and numbers: no name in it is looked up and nothing is
    called. Raises ValueError for any other pickle."""
    mark, stack, memo = object(), list[Any](), dict[int, Any]()

    def since_mark() -> list[Any]:
        at = len(stack) - 1 - stack[::-1].index(mark)
        some = stack[at + 1 :]
        del stack[at:]
        return some

    for op, argument, _ in pickletools.genops(data):
        name = op.name
        if name in ("PROTO", "FRAME", "STOP"):
            continue
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            value = _CONSTANTS[name]
            stack.append(list(value) if name == "EMPTY_LIST" else value)
        elif name == "MARK":
            stack.append(mark)
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
            memo[len(memo) if argument is None else int(str(argument))] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(str(argument))])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("TUPLE", "LIST"):
            some = since_mark()
            stack.append(tuple(some) if name == "TUPLE" else some)
        elif name == "APPENDS":
            some = since_mark()
            stack[-1].extend(some)
        elif name == "APPEND":
            stack[-2].append(stack.pop())
        elif name == "GLOBAL":
            stack.append(_Named())
        elif name in ("STACK_GLOBAL", "REDUCE"):
            stack[-2:] = [_Named(parts=stack[-2:])]
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Named):
                raise ValueError("a pickle that is no array in /meta")
            stack[-1].state = state
        else:
            raise ValueError(f"a pickle with {name} in /meta")
    made = stack[-1] if stack else None
    if not isinstance(made, _Named) or not isinstance(made.state, tuple) or len(made.state) != 5:
        raise ValueError("a pickle that is no array in /meta")
    _, shape, _, _, cells = made.state
    found = np.empty(len(cells), dtype=object)
    found[:] = ["unknown" if isinstance(cell, _Named) else cell for cell in cells]
    return found.reshape(shape)


# --- writing ---
def export(database: Database, path: str | Path) -> int:
    """Write the 3 x 3 filters of a database as one HDF5 file and give their number: `/filters` (N, 3, 3) float64, as
    published, and under `/meta` the columns of the published table that are known, one array each, without pickles (the
    published reader, pandas, does not read them; `read_published` does). Raises XaiError where a part is damaged."""
    h5py, path = _h5py(), Path(path)
    entries = database.entries("k = 3")
    total = sum(entry.layer.n for entry in entries)
    new = path.with_name(f".{path.name}.part")
    try:
        with h5py.File(new, "w") as file:
            values, at = file.create_dataset("filters", (total, 3, 3), np.float64), 0
            for _, _, filters in database.filters(3):
                values[at : at + len(filters)] = filters.reshape(-1, 3, 3)
                at += len(filters)
            if at != total:
                raise error("the database", "whole to be exported", f"{at:,} of {total:,} filters",
                            next(iter(database.damaged.values()), "Collect it again"))
            for name, column in _columns(entries).items():
                words = isinstance(column[0], str) if column else False
                file.create_dataset(f"meta/{name}", data=column, dtype=h5py.string_dtype() if words else None)
        os.replace(new, path)
    except OSError as problem:
        raise error("the HDF5 file", "one that can be written", f"{path}: {problem}", "Name another place") from problem
    finally:
        with contextlib.suppress(OSError):
            new.unlink()
    return total


def _columns(entries: list[Entry]) -> dict[str, list[Any]]:
    ends = np.cumsum([entry.layer.n for entry in entries]).tolist()
    models = [(entry.facts.spec, entry.facts.weights_hash, entry.layer.bn_folded) for entry in entries]
    number = {model: i for i, model in enumerate(dict.fromkeys(model[:2] for model in models))}
    columns: dict[str, list[Any]] = {
        "model_id": [number[model[:2]] for model in models], "model": [entry.facts.spec for entry in entries],
        "conv_depth": [-1 if e.layer.depth is None else e.layer.depth for e in entries],
        "conv_depth_norm": [float("nan") if e.layer.depth_norm is None else e.layer.depth_norm for e in entries],
        "filter_ids": [f"{end - entry.layer.n}:{end - 1}" for end, entry in zip(ends, entries, strict=True)]}
    for ours, theirs in LABELS.items():
        columns[theirs] = [getattr(entry.facts, ours) for entry in entries]
    return columns
