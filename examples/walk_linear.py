"""The linear interpreter on every kind of network: y = F x + r on the smallest variant of each of timm's modules.

Run from the root of the checkout (a few seconds with --smoke; the largest networks take minutes and some GB each):

    python examples/walk_linear.py

Each network has random weights, with constants that are not zero, at its native input size and in float32. Of the class
with the highest score the row, the votes, the offset (replayed from what was held, without F) and the constants of all
layers are asked for. It holds where |y - F x - r| is at most 1e-5 of sum |F_i x_i| + sum |r terms|. A network that asks
for more than `--memory` is not decided. It writes `examples/tables/linear_walk.csv`, a row at a time; what stands there
already is not done again with `--resume`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import nn

import xai
from xai.linear import COMPLETE, Linear

TABLES = Path(__file__).resolve().parent / "tables"
SMOKE = ("test_convnext", "test_vit", "test_efficientnet")


@dataclass(frozen=True)
class Row:
    """What became of one network: the gap, the share of the offset that the layers' constants explain, and the verdict:
    "holds", or what is wrong."""

    module: str
    model: str
    gap: str
    explained: str
    verdict: str


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Walk the networks, write the table and print the count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="three small networks, nothing written")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these networks alone, nothing written")
    parser.add_argument("--memory", type=float, default=16, help="GB that the process may ask for (Linux; default 16)")
    parser.add_argument("--resume", action="store_true", help="keep the rows of an earlier run")
    parser.add_argument("--mode", default="gate", choices=("gate", "tangent"))
    options = parser.parse_args(arguments)
    wanted = SMOKE if options.smoke else tuple(options.only)
    with (TABLES / "timm_smallest.csv").open(newline="", encoding="utf-8") as file:
        named = [(row["module"], row["model"]) for row in csv.DictReader(file)]
    named += [("test", name) for name in wanted if name not in [model for _, model in named]]
    whole, rows = not wanted and options.mode == "gate", list[Row]()
    if whole:
        limit(options.memory)
    done = {row.model: row for row in table()} if whole and options.resume else {}
    for module, model in named:
        if not wanted or model in wanted:
            rows.append(done.get(model) or visit(module, model, options.mode))
            print(", ".join(asdict(rows[-1]).values()), flush=True)
            gc.collect()
            if whole:
                write(rows)
    print(summary(rows))
    return rows


def limit(memory: float) -> None:
    """Let this process ask for no more than so many GB, so that one network cannot end the walk."""
    with contextlib.suppress(ImportError):  # Windows
        import resource

        top = int(memory * 1e9)
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (top if hard == resource.RLIM_INFINITY else min(top, hard), hard))


def table() -> list[Row]:
    """The rows that were written."""
    path = TABLES / "linear_walk.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**row) for row in csv.DictReader(file)]


def write(rows: Sequence[Row]) -> None:
    """All rows so far."""
    with (TABLES / "linear_walk.csv").open("w", newline="", encoding="utf-8") as file:
        found = csv.DictWriter(file, [column.name for column in fields(Row)], lineterminator="\n")
        found.writeheader()
        found.writerows(asdict(row) for row in rows)


def visit(module: str, name: str, mode: str = "gate") -> Row:
    """One network; whatever goes wrong becomes the verdict."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = xai.load(f"timm:{name}", weights="random", device="cpu")
        with model.opened() as network:
            alive(network)
        x = torch.randn(1, model.preprocessing.channels, *model.preprocessing.size,
                        generator=torch.Generator().manual_seed(1))
        linear = Linear(model, x, mode)
        direction = torch.zeros(linear.y.shape, dtype=linear.y.dtype)
        direction.view(-1)[int(linear.y.argmax())] = 1
        row, terms = linear.terms(direction)
        gap = linear.gap_of(direction, row, terms)
        missing = abs(float((linear.offset * direction).double().sum()) - sum(term.value for term in terms))
        share = 1 - missing / max(sum(term.size for term in terms), 1e-30)
        verdict = "holds" if gap <= COMPLETE[torch.float32] and row.any() else (
            "no pixel has a vote" if not row.any() else "does not hold")
        return Row(module, name, f"{gap:.0e}", f"{share:.4f}", verdict)
    except Exception as problem:  # a walk reports what it meets and goes on
        said = " ".join(f"{type(problem).__name__}: {problem}".split())[:160]
        short = isinstance(problem, MemoryError) or "allocate memory" in said or "OutOfMemory" in said
        return Row(module, name, "", "", "needs more memory" if short else said)


def alive(network: nn.Module) -> None:
    """Constants, and weights that are born zero, drawn anew, so that nothing holds because it is zero."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            born_zero = value.is_floating_point() and value.numel() > 1 and not value.any()
            if born_zero or "running_mean" in name or name.endswith("bias"):
                value.add_(0.05 * torch.randn(value.shape, generator=draw).to(value))


def summary(rows: Sequence[Row]) -> str:
    """The count in words."""
    short = sum(row.verdict == "needs more memory" for row in rows)
    return (f"y = F x + r holds on {sum(row.verdict == 'holds' for row in rows)} of {len(rows) - short} networks"
            + (f"; {short} more need more memory than was allowed." if short else "."))


if __name__ == "__main__":
    main()
