"""Prints what ten million filters cost in time, bytes and memory, each beside its goal; exits 1 where one is missed.

    python tests/benchmarks/filters.py --table examples/tables/filters_cost.md

Seeded synthetic 3 x 3 filters in layers of 250,000. Time: both arms from the same arrays in memory, in turns in one
process: here one pass of `layer_sums`, then components, entropies, sparsity and drift from the sums; there
sklearn's PCA(svd_solver="full") of the scaled filters, np.linalg.svd a layer (values alone), np.histogram a
coefficient. Writing to Parquet and scanning it are stated apart. Memory: the peak of a process of its own that scans
the Parquet files and makes the sums again, of all filters and of a quarter of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2]))

import numpy as np  # noqa: E402  # after the path of the checkout
import torch  # noqa: E402
from interleave import Arm, ratio, seconds  # noqa: E402

from filterdb import measures, store  # noqa: E402
from filterdb.banks import Layer  # noqa: E402
from filterdb.database import Database  # noqa: E402
from filterdb.records import Entry, Facts  # noqa: E402
from filterdb.sums import BINS, added, dct, edges, layer_sums  # noqa: E402

LAYER = 250_000
MILLION = 1_000_000
SHARES = np.array([.39815, .18326, .11704, .09853, .06576, .05522, .03008, .02823, .02374])


@dataclass(frozen=True)
class Row:
    """One line of the table; a figure without a goal is only stated."""

    says: str
    found: float
    unit: str
    most: float | None = None
    least: float | None = None
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure, as it is printed, reaches its goal."""
        shown = float(f"{self.found:.3g}")
        return (self.most is None or shown <= self.most) and (self.least is None or shown >= self.least)

    @property
    def cells(self) -> tuple[str, ...]:
        """As they are printed."""
        goal = f"at most {self.most:g}" if self.most is not None else f"at least {self.least:g}" if self.least else ""
        figure = " ".join(part for part in (f"{self.found:.3g}", self.unit, self.note) if part)
        return self.says, figure, goal, ("yes" if self.met else "NO") if goal else ""


def layers(count: int) -> Iterator[np.ndarray]:
    """(LAYER, 9) float32, layer by layer: Gaussian, each with its own scale and shares of variance, 5 % sparse."""
    for i in range(count):
        rng = np.random.default_rng(i)
        values = rng.standard_normal((LAYER, 9), dtype=np.float32) * np.sqrt(SHARES ** rng.uniform(0, 1.5))
        values = (values @ dct(3) * 10 ** rng.uniform(-3, -1)).astype(np.float32)
        values[rng.random(LAYER) < 0.05] *= 1e-4
        yield values


def here(filters: list[np.ndarray]) -> dict[str, object]:
    """One pass, and everything from its sums."""
    sums = [layer_sums(one, 3) for one in filters]
    total = added(sums, 3)
    half = [added(part, 3).histogram for part in (sums[::2], sums[1::2])]
    return {"pca": measures.pca(total).explained, "entropy": [measures.raw_entropy(one) for one in sums],
            "sparse": [one.n_sparse for one in sums],
            "drift": measures.drift(half[0], half[1], measures.dct_explained(total), 3)}


def there(filters: list[np.ndarray]) -> dict[str, object]:
    """The same by the usual functions."""
    from sklearn.decomposition import PCA

    scaled = []
    entropy, sparse = [], []
    for one in filters:
        top = np.abs(one).max(1)
        sparse.append(int((top <= 0.01 * top.max()).sum()))
        scaled.append(one / np.where(top > 0, top, 1)[:, None])
        p = np.linalg.svd(one - one.mean(0), compute_uv=False) ** 2
        p = p / p.sum()
        entropy.append(float(-(p * np.log10(p)).sum()))
    basis, limits = dct(3).astype(np.float32), edges(3)
    counts = []
    for i in range(9):
        counts.append([np.histogram(one @ basis[i], limits)[0] for one in scaled])
    half = [np.array([np.sum(row[k::2], 0) for row in counts]) for k in (0, 1)]
    together = np.concatenate(scaled)
    explained = PCA(svd_solver="full").fit(together).explained_variance_ratio_
    shares = (together @ basis.T).var(0)
    return {"pca": explained, "entropy": entropy, "sparse": sparse,
            "drift": measures.drift(half[0], half[1], shares / shares.sum(), 3)}


def agree(one: dict[str, object], two: dict[str, object]) -> None:
    """Both arms find the same."""
    np.testing.assert_allclose(one["pca"], two["pca"], rtol=1e-3)
    np.testing.assert_allclose(one["entropy"], two["entropy"], atol=1e-4)
    assert one["sparse"] == two["sparse"]
    np.testing.assert_allclose(one["drift"], two["drift"], rtol=0.02)


def written(root: Path, count: int) -> store.Collected:
    """The filters as one model of a database."""
    facts = Facts(spec=f"synthetic:{count}", architecture="synthetic", weights_hash=str(count))

    def pieces() -> store.Pieces:
        for i, one in enumerate(layers(count)):
            layer = Layer(name=f"layer{i}", op="Conv2d", k=3, c_out=500, c_in=500, depth=i, depth_norm=i / count,
                          dtype="float32", n=len(one))
            yield Entry(facts, layer, layer_sums(one, 3)), one

    return store.write(root, facts.spec, store.key_of(count), pieces)


def timed(run: Callable[[], object]) -> float:
    """CPU seconds."""
    started = time.process_time()
    run()
    return time.process_time() - started


def scan(root: str) -> None:
    """Sums of all filters again, from the files; prints seconds, filters and the peak of memory, as JSON."""
    torch.set_num_threads(1)
    started, n = time.process_time(), 0
    for _, sums in Database(root).recounted(3):
        n += sums.n
    print(json.dumps({"seconds": time.process_time() - started, "filters": n,
                      "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


def scanned(root: Path) -> dict[str, float]:
    """That in a process of its own."""
    done = subprocess.run([sys.executable, str(HERE), "scan", str(root)], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measured(count: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """All figures."""
    n, rows = count * LAYER, list[Row]()
    with tempfile.TemporaryDirectory(prefix="xai-filters-") as folder:
        places = {size: Path(folder) / str(size) for size in (max(1, count // 4), count)}
        made = timed(lambda: list(layers(count)))
        took = {size: timed(lambda s=size, p=place: written(p, s)) for size, place in places.items()}
        say("written")
        size = sum(path.stat().st_size for path in places[count].rglob("*.parquet"))
        rows.append(Row("bytes on disk, of raw float32", size / (36 * n), "", most=0.9,
                        note=f"({36 * size / (36 * n):.1f} bytes a filter)"))
        raw = timed(lambda: [None for _ in Database(places[count]).filters(3)])
        again = {size: scanned(place) for size, place in places.items()}
        say("scanned")
        rows.append(Row("peak memory of a scan", again[count]["peak"] / 1e6, "MB", most=1000))
        rows.append(Row("the same of all filters, in that of a quarter", again[count]["peak"] /
                        again[max(1, count // 4)]["peak"], "", most=1.15))
        per = n / MILLION
        rows += [Row("collecting a million: sums and Parquet, to disk", (took[count] - made) / per, "CPU s"),
                 Row("reading a million from Parquet", raw / per, "CPU s"),
                 Row("reading a million and summing it", again[count]["seconds"] / per, "CPU s")]
    filters = list(layers(count))
    agree(here(filters), there(filters))
    spent = seconds([Arm("here", lambda _: here(filters)), Arm("there", lambda _: there(filters))], rounds, "cpu", say)
    found = ratio(spent["there"], spent["here"])
    rows.insert(0, Row("PCA full + svd a layer + np.histogram, in one pass here", found.median, "", least=5.0,
                       note=f"({found.low:.2f} to {found.high:.2f})"))
    rows.append(Row("summing a million in memory", float(np.median(spent["here"])) / per, "CPU s"))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and give the exit code."""
    parser = argparse.ArgumentParser(description="Time, bytes and memory of ten million filters; exits 1 below a goal.")
    parser.add_argument("--filters", type=float, default=10, help="millions of filters (default 10)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a million filters, one round")
    parser.add_argument("--table", type=Path, help="also write the table here, in Markdown")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    count = max(2, round((1 if asked.quick else asked.filters) * MILLION / LAYER))
    rows = measured(count, 1 if asked.quick else asked.rounds, lambda said: print(said, file=sys.stderr, flush=True))
    about = (f"{count * LAYER:,} filters of 3 x 3 in {count} layers, seeded, synthetic; {BINS} bins a coefficient; 1 "
             f"thread, CPU time, rounds: {1 if asked.quick else asked.rounds}; torch {version('torch')}, numpy "
             f"{version('numpy')}, scikit-learn {version('scikit-learn')}, pyarrow {version('pyarrow')}; "
             f"{platform.machine()}.")
    lines = [("what", "measured", "goal", "met"), ("---",) * 4, *(row.cells for row in rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + about + "\n"
    print(text, end="")
    if asked.table:
        asked.table.parent.mkdir(parents=True, exist_ok=True)
        asked.table.write_text(text, encoding="utf-8")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["scan"]:
        scan(sys.argv[2])
    else:
        sys.exit(main())
