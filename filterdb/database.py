"""A filter database that is open: DuckDB over its files, ready views, its layers, and its filters as a stream."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from filterdb import store
from filterdb.records import Entry, entry_from
from filterdb.sums import Sums, layer_sums
from xai.errors import XaiError, error

GROUPS = {"by_task": "task", "by_depth": "decile", "by_architecture": "architecture", "by_training": "training"}
SHOWN = ("model", "spec", "architecture", "task", "dataset", "training", "precision", "weights_hash", "layer_id",
         "name", "op", "k", "groups", "depthwise", "c_out", "c_in", "stride_y", "stride_x", "dilation", "depth",
         "depth_norm", "decile", "bn_folded", "dtype", "n", "max_abs", "n_sparse", "sparsity", "entropy",
         "entropy_clean", "threshold", "orthogonality", "aliasing", "degenerate")
AT_ONCE = 1 << 17  # filters that are read at once
_SUMMARY = """SELECT {column}, k, count(DISTINCT model) AS models, count(*) AS layers, sum(n)::BIGINT AS filters,
    sum(n_sparse) / sum(n) AS sparsity, sum(n * entropy) / sum(n) FILTER (entropy IS NOT NULL) AS entropy,
    sum(c_out * orthogonality) / sum(c_out) FILTER (orthogonality IS NOT NULL) AS orthogonality,
    avg(degenerate::INT) AS degenerate FROM layers GROUP BY {column}, k
    ORDER BY {column}, k"""


class Database:
    """A filter database, read only. `damaged`: what was found damaged, each with a sentence; it is left out.

    Views for SQL: `layers` (one row a layer), `left_out` (the layers whose filters were not taken, and why), `filters`
    (3 x 3; `filters_5` and so on for other sizes: model, layer_id, "out", "in", w0 to w8 row by row), `sums` (layers
    with what their filters add up to), and `by_task`, `by_depth` (deciles), `by_architecture`, `by_training`: models,
    layers, filters, share of sparse filters, entropy weighted by filters, orthogonality weighted by output channels,
    share of degenerate layers, for each size k.
    """

    def __init__(self, path: str | Path, deep: bool = False) -> None:
        self.path = Path(path)
        self.damaged: dict[str, str] = {}
        self._good: list[Path] = []
        for folder in store.folders(self.path):
            self._add(folder, deep)
        self._connection: Any = None

    def _add(self, folder: Path, deep: bool) -> None:
        bad = store.damage(folder, deep)
        self.damaged.update({str(folder / name): said for name, said in bad.items()})
        if not {store.LAYERS, store.MANIFEST} & bad.keys():
            self._good += [folder / name for name in store.manifest(folder)["files"] if name not in bad]

    def _files(self, pattern: str) -> list[str]:
        return [str(path) for path in self._good if path.match(pattern)]

    @property
    def sizes(self) -> list[int]:
        """The k of the filters that are there."""
        return sorted({int(Path(name).name[9:].split("-")[0]) for name in self._files("filters-k*.parquet")})

    @property
    def connection(self) -> Any:
        """The DuckDB connection with the views."""
        if self._connection is None:
            import duckdb

            self._connection = duckdb.connect()
            self._views()
        return self._connection

    def _views(self) -> None:
        run = self._connection.execute
        run(f"CREATE OR REPLACE VIEW every AS SELECT * FROM {_parquet(self._files(store.LAYERS))}")
        run("CREATE OR REPLACE VIEW sums AS SELECT * FROM every WHERE left_out = ''")
        run(f"CREATE OR REPLACE VIEW layers AS SELECT {', '.join(SHOWN)} FROM sums")
        run("CREATE OR REPLACE VIEW left_out AS SELECT model, spec, layer_id, name, op, left_out FROM every "
            "WHERE left_out <> ''")
        for k in self.sizes:
            run(f"CREATE OR REPLACE VIEW filters{'' if k == 3 else f'_{k}'} AS SELECT * FROM "
                f"{_parquet(self._files(f'filters-k{k}-*.parquet'))}")
        for view, column in GROUPS.items():
            run(f"CREATE OR REPLACE VIEW {view} AS {_SUMMARY.format(column=column)}")

    def sql(self, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """The column names and rows that a query gives. Raises XaiError where it is none, or no filters can be read."""
        import duckdb

        self._whole()
        try:
            return self._run(query)
        except (duckdb.IOException, duckdb.InvalidInputException, duckdb.SerializationException) as problem:
            before = len(self.damaged)
            self._good = []
            for folder in store.folders(self.path):
                self._add(folder, deep=True)
            if len(self.damaged) == before:
                raise _misread(query, problem) from problem
            self._views()
            return self._run(query)
        except duckdb.Error as problem:
            raise _misread(query, problem) from problem

    def _run(self, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        found = self.connection.execute(query)
        return [column[0] for column in found.description or ()], found.fetchall()

    def _whole(self) -> None:
        if not self._files(store.LAYERS):
            raise XaiError(next(iter(self.damaged.values()), f"{self.path} holds nothing."))

    def entries(self, where: str = "", left_out: bool = False) -> list[Entry]:
        """The layers that a condition of SQL names (none: all), with the sums of their filters, by model and place."""
        self._whole()
        import duckdb

        text = f"SELECT * FROM {'every' if left_out else 'sums'} {f'WHERE {where}' if where else ''} " \
               "ORDER BY model, layer_id"
        try:
            names, rows = self._run(text)
        except duckdb.Error as problem:
            raise _misread(where, problem) from problem
        return [entry_from(dict(zip(names, row, strict=True))) for row in rows]

    def filters(self, k: int = 3, models: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """(model, layer_id (m,), filters (m, k^2) float32), at most 131,072 at once. A part whose pages are not as they
        were written goes to `damaged` and ends there."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = ["layer_id", *(f"w{i}" for i in range(k * k))]
        for path in map(Path, self._files(f"filters-k{k}-*.parquet")):
            model = path.parent.name.removeprefix("model=")
            if models is not None and model not in models:
                continue
            try:
                file = pq.ParquetFile(path, page_checksum_verification=True)
                for group in range(file.num_row_groups):  # one by one: of several more would be read ahead
                    for batch in file.iter_batches(AT_ONCE, row_groups=[group], columns=names):
                        values = np.stack([batch.column(name).to_numpy() for name in names[1:]], 1)
                        yield model, batch.column("layer_id").to_numpy(), values
            except (OSError, pa.ArrowException) as problem:
                self.damaged[str(path)] = str(error(f"the file {path}", "as it was written", str(problem)[:200],
                                                    "Collect that model again"))


    def recounted(self, k: int = 3, models: Sequence[str] | None = None) -> Iterator[tuple[tuple[str, int], Sums]]:
        """((model, layer_id), sums) of every layer of that size, from its filters anew: one scan, which holds one layer
        and one row group at a time."""
        held: list[np.ndarray] = []
        at = ("", -1)
        for model, ids, filters in self.filters(k, models):
            cuts = [0, *(np.flatnonzero(np.diff(ids)) + 1).tolist(), len(ids)]
            for first, last in itertools.pairwise(cuts):
                own = (model, int(ids[first]))
                if own != at and held:
                    yield at, layer_sums(np.concatenate(held), k)
                    held = []
                at = own
                held.append(filters[first:last])
        if held:
            yield at, layer_sums(np.concatenate(held), k)


def _parquet(files: Sequence[str]) -> str:
    quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in files)
    return f"read_parquet([{quoted}], hive_partitioning = true, hive_types = {{'model': VARCHAR}})"


def _misread(query: str, problem: Exception) -> XaiError:
    first = str(problem).strip().splitlines()[0]
    return error("the query", "SQL over the views layers, left_out, filters, sums and by_task, by_depth, "
                 "by_architecture, by_training", f"{query!r}: {first}",
                 "For example SELECT spec, name, entropy FROM layers ORDER BY entropy")


def open(path: str | Path, deep: bool = False) -> Database:
    """Open a database that `collect` wrote; `deep` compares the hashes of all files first. Raises XaiError where there
    is none."""
    return Database(path, deep)
