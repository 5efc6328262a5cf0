"""The files of a filter database: one folder a model, written whole or not at all, with the hashes of its files."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from filterdb.banks import Layer
from filterdb.records import Entry, entries, row_of
from filterdb.sums import MOMENTS
from xai.errors import XaiError, error
from xai.model import Model

FORMAT = 1
GROUP = 1 << 20  # filters in a row group
FILE = 32 * GROUP  # filters in a file: about 1 GB of 3 x 3
LAYERS = "layers.parquet"
MANIFEST = "manifest.json"
_LOCKS, _PART = ".writers", ".part-"
Pieces = Iterable[tuple[Entry, np.ndarray | None]]  # layers with their filters, None where they are left out


@dataclass(frozen=True)
class Collected:
    """What collecting a model came to: its folder, whether it is new (else it was there, as `spec`), layers, filters,
    and how many layers were left out, by reason."""

    folder: Path
    new: bool
    spec: str
    layers: int
    filters: int
    left_out: dict[str, int]


def key_of(*parts: object) -> str:
    """12 hex digits of what makes a model's filters what they are."""
    return hashlib.sha256("\x1f".join(map(str, (FORMAT, *parts))).encode()).hexdigest()[:12]


def collect(model: Model, database: str | Path, *, folded: bool = False, architecture: str = "", task: str = "",
            dataset: str = "", training: str = "") -> Collected:
    """Take every k x k convolution of a model into a database (a folder, made where there is none).

    A model whose weights are there already, in the same precision and as much folded, is not taken again; one whose
    files are damaged is written anew. The other words label it. Safe from many processes at once, also on one model.
    Raises XaiError where the model's layers cannot be seen or the folder cannot be written.
    """
    key = key_of(model.weights_hash, model.dtype, folded)

    def pieces() -> Iterator[tuple[Entry, np.ndarray | None]]:
        for entry, bank in entries(model, folded, architecture=architecture, task=task, dataset=dataset,
                                   training=training):
            yield entry, None if bank is None else bank.filters.numpy()

    return write(Path(database), model.spec, key, pieces)


def write(root: Path, spec: str, key: str, pieces: Callable[[], Pieces]) -> Collected:
    """Write the layers and filters (n, k^2) of one model as `root`/model=KEY, unless that is there and whole."""
    folder = root / f"model={key}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        if folder.is_dir() and not damage(folder):
            return _told(folder, new=False)
        with _room(root) as new:
            _fill(new, spec, key, pieces())
            kept = _place(new, folder)
    except OSError as problem:
        raise error("the database", "a folder that can be written", f"{root}: {problem.strerror or problem}",
                    "Name another place with --db, or make room there") from problem
    return _told(folder, new=kept)


def _told(folder: Path, new: bool) -> Collected:
    said = manifest(folder)
    return Collected(folder, new, said["spec"], said["layers"], said["filters"], said["left_out"])


# --- folders ---
@contextlib.contextmanager
def _room(root: Path) -> Iterator[Path]:
    """A folder to write in. Its lock is held as long as this process lives, so that others can tell what is dead."""
    name = uuid.uuid4().hex
    (root / _LOCKS).mkdir(exist_ok=True)
    path, lock = root / (_PART + name), root / _LOCKS / name
    with open(lock, "wb") as held:
        _try_lock(held.fileno())
        try:
            path.mkdir()
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _try_lock(descriptor: int) -> bool:
    """Lock an open file unless another process holds it; where there are no such locks nothing counts as dead."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sweep(root: Path) -> None:
    """Remove what processes left that were ended half-way."""
    for part in root.glob(_PART + "*"):
        lock = root / _LOCKS / part.name.removeprefix(_PART)
        try:
            with open(lock, "rb+") as held:
                if _try_lock(held.fileno()):
                    shutil.rmtree(part, ignore_errors=True)
                    lock.unlink(missing_ok=True)
        except FileNotFoundError:  # the lock comes before the folder and goes after it
            shutil.rmtree(part, ignore_errors=True)


def _place(new: Path, folder: Path) -> bool:
    """Move a finished folder to its place; False where another process was first."""
    while True:
        try:
            os.rename(new, folder)
            _flush(folder.parent)
            return True
        except OSError:
            if not folder.is_dir():
                raise
            if not damage(folder):
                return False
            shutil.rmtree(folder)


def _flush(path: Path) -> None:
    """Have the disk take a file or folder before anything is built on it."""
    with contextlib.suppress(PermissionError):  # Windows opens no folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- files ---
def _fill(new: Path, spec: str, key: str, pieces: Pieces) -> None:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    parts: dict[int, _Part] = {}
    left: dict[str, int] = {}
    for layer_id, (entry, filters) in enumerate(pieces):
        rows.append(row_of(entry, layer_id))
        if filters is None:
            left[entry.layer.left_out] = left.get(entry.layer.left_out, 0) + 1
        else:
            parts.setdefault(entry.layer.k, _Part(new, entry.layer.k)).add(entry.layer, layer_id, filters)
    for part in parts.values():
        part.close()
    pq.write_table(_layers_table(rows), new / LAYERS, compression="zstd", write_page_checksum=True)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in sorted(new.iterdir())}
    said = {"format": FORMAT, "spec": spec, "key": key, "layers": len(rows) - sum(left.values()),
            "filters": sum(part.rows for part in parts.values()), "left_out": left, "files": files}
    (new / MANIFEST).write_text(json.dumps(said, indent=1), encoding="utf-8")
    for path in new.iterdir():
        _flush(path)
    _flush(new)


def _layers_table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    words = ["spec", "architecture", "task", "dataset", "training", "precision", "weights_hash", "name", "op", "dtype",
             "left_out"]
    whole = ["layer_id", "k", "groups", "c_out", "c_in", "stride_y", "stride_x", "dilation", "depth", "decile"]
    real = ["depth_norm", "max_abs", "sparsity", "entropy", "entropy_clean", "threshold", "orthogonality", "aliasing"]
    schema = pa.schema({**dict.fromkeys(words, pa.string()), **dict.fromkeys(whole, pa.int32()),
                        **dict.fromkeys(real, pa.float64()), **dict.fromkeys(("n", "n_sparse"), pa.int64()),
                        **dict.fromkeys(("depthwise", "bn_folded", "degenerate"), pa.bool_()),
                        **dict.fromkeys(MOMENTS, pa.list_(pa.float64())),
                        **dict.fromkeys(("histogram", "phase_at", "phase_count"), pa.list_(pa.int64()))})
    return pa.Table.from_pylist(rows, schema=schema)


class _Part:
    """The filters of one size, in files of at most FILE rows; byte planes apart and pages large, which zstd needs to
    gain on the noise that weights are."""

    def __init__(self, folder: Path, k: int) -> None:
        self._folder, self._k, self.rows = folder, k, 0
        self._held: list[Any] = []
        self._waiting = self._files = self._here = 0
        self._writer: Any = None

    def add(self, layer: Layer, layer_id: int, filters: np.ndarray) -> None:
        """Filters (n, k^2) of one layer, in their order."""
        import pyarrow as pa

        per = max(1, layer.c_in // layer.groups) if layer.c_in else max(1, len(filters))
        for first in range(0, len(filters), GROUP):
            some = filters[first : first + GROUP]
            at = np.arange(first, first + len(some))
            columns = np.ascontiguousarray(some.T, dtype=np.float32)
            self._held.append(pa.table({
                "layer_id": np.full(len(some), layer_id, np.int32), "out": (at // per).astype(np.int32),
                "in": (at % per).astype(np.int32), **{f"w{i}": columns[i] for i in range(self._k**2)}}))
            self._waiting += len(some)
            if self._waiting >= GROUP:
                self._flush_held()

    def _flush_held(self) -> None:
        import pyarrow as pa

        table = pa.concat_tables(self._held)
        if self._writer is None or self._here + len(table) > FILE:
            self._next(table.schema)
        self._writer.write_table(table, row_group_size=GROUP)
        self._here, self.rows = self._here + len(table), self.rows + len(table)
        self._held, self._waiting = [], 0

    def _next(self, schema: Any) -> None:
        import pyarrow.parquet as pq

        if self._writer is not None:
            self._writer.close()
        path = self._folder / f"filters-k{self._k}-{self._files:03d}.parquet"
        encoding = {name: "BYTE_STREAM_SPLIT" if name.startswith("w") else "DELTA_BINARY_PACKED"
                    for name in schema.names}
        options: dict[str, Any] = {"data_page_size": 4 << 20}
        if "max_rows_per_page" in inspect.signature(pq.ParquetWriter.__init__).parameters:  # older ones set no limit
            options["max_rows_per_page"] = GROUP
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False,
                                        column_encoding=encoding, write_page_checksum=True, **options)
        self._files, self._here = self._files + 1, 0

    def close(self) -> None:
        """Write what is held back, and the end of the file."""
        if self._held:
            self._flush_held()
        if self._writer is not None:
            self._writer.close()


def digest(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading ---
def manifest(folder: Path) -> dict[str, Any]:
    """What a model's folder says of itself. Raises XaiError where that is damaged or of a newer format."""
    path = folder / MANIFEST
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if said["format"] > FORMAT or not {"files", "layers", "filters", "left_out"} <= said.keys():
            raise ValueError(f"format {said['format']}")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise error(f"the file {path}", f"readable, of format 1 to {FORMAT}", type(problem).__name__,
                    "Collect that model again") from problem
    return said


def damage(folder: Path, deep: bool = False) -> dict[str, str]:
    """The damaged files of a model's folder, each with a sentence. Sizes are compared, and the hash of the table of
    layers; `deep`: the hashes of all files."""
    try:
        files = manifest(folder)["files"]
    except XaiError as problem:
        return {MANIFEST: str(problem)}
    found = {}
    for name, said in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is None or size != said["bytes"]:
            got = "nothing" if size is None else f"{size:,} bytes"
            wanted = f"{said['bytes']:,} bytes"
        elif (deep or name == LAYERS) and digest(path) != said["sha256"]:
            got, wanted = "other bytes than were written", "as it was written"
        else:
            continue
        found[name] = str(error(f"the file {path}", wanted, got, "Collect that model again"))
    return found


def folders(root: Path) -> list[Path]:
    """The models' folders of a database, by name. Raises XaiError where there is none."""
    found = sorted(path for path in root.glob("model=*") if path.is_dir()) if root.is_dir() else []
    if not found:
        raise error("the database", "a folder that `xai filters collect` wrote", root, "Name it with --db")
    return found


