"""Prints the error of Shapley values at equal budgets of evaluations, here and in two peers; exits 1 if not the least.

    python tests/benchmarks/shapley_error.py --table examples/tables/shapley_error.md

The games are real: segments of photographs, shown or hidden, scored by the shipped network. Every coalition of every
game is scored once (4,096 for 12 segments), which gives the true values; the estimators then look their scores up in
that table, and what they look up is counted. The error is |estimate - truth|^2 / |truth|^2.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import Tensor

from xai.batch import Batch
from xai.images import load_images
from xai.sampler import shown
from xai.segments import mean_colours, merged, segment
from xai.shapley import coalitions, solve
from xai.zoo.loading import load

PICTURES = ("sample:chelsea", "sample:coffee", "sample:astronaut", "sample:rocket")
PEERS = ("shap", "captum")
DRAWS = 2000  # of the bootstrap
AT_ONCE = 16  # masked pictures a forward


@dataclass
class Game:
    """What every coalition scores: row k of `values` (2^n,) has the players whose bits k has, the lowest first."""

    n: int
    values: Tensor
    asked: int = 0
    truth: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.truth = shapley(self.n, self.values)

    def __call__(self, z: Tensor) -> Tensor:
        """(m,) for coalitions (m, n) of zeros and ones."""
        self.asked += len(z)
        return self.values[(z.round().long() * 2 ** torch.arange(self.n)).sum(1)]

    def error(self, phi: Tensor) -> float:
        """|phi - truth|^2 / |truth|^2."""
        return float((phi - self.truth).square().sum() / self.truth.square().sum())


def shapley(n: int, values: Tensor) -> Tensor:
    """(n,): the definition, from the scores of all coalitions."""
    rows = torch.arange(2**n)
    sizes = ((rows[:, None] >> torch.arange(n)) & 1).sum(1)
    weights = torch.tensor([math.factorial(s) * math.factorial(n - 1 - s) / math.factorial(n) for s in range(n)],
                           dtype=torch.float64)
    found = []
    for i in range(n):
        without = rows[(rows >> i) & 1 == 0]
        found.append((weights[sizes[without]] * (values[without + 2**i] - values[without])).sum())
    return torch.stack(found)


# --- estimators: (game, evaluations, seed) -> (n,) ---
def ours(game: Game, evaluations: int, seed: int) -> Tensor:
    """What the analyzer shap_kernel does; none and all of the players take two evaluations."""
    z, weights = coalitions(game.n, evaluations - 2, torch.Generator().manual_seed(seed))
    ends = game(torch.stack([torch.zeros(game.n), torch.ones(game.n)]))
    return solve(z, weights, game(z)[:, None], ends[:1], ends[1:]).phi[:, 0]


def kernel_explainer(game: Game, evaluations: int, seed: int) -> Tensor:
    """shap's KernelExplainer without its selection of ten players."""
    import shap

    np.random.seed(seed)
    explainer = shap.KernelExplainer(lambda z: game(torch.from_numpy(z)).numpy(), np.zeros((1, game.n)))
    return torch.from_numpy(explainer.shap_values(np.ones(game.n), nsamples=evaluations - 2, l1_reg=0, silent=True))


def kernel_shap(game: Game, evaluations: int, seed: int) -> Tensor:
    """captum's KernelShap."""
    from captum.attr import KernelShap

    torch.manual_seed(seed)
    found: Tensor = KernelShap(game).attribute(torch.ones(1, game.n), baselines=torch.zeros(1, game.n),
                                               n_samples=evaluations, perturbations_per_eval=evaluations)
    return found[0].double()


ESTIMATORS: dict[str, Callable[[Game, int, int], Tensor]] = {
    "xai shap_kernel": ours, "shap KernelExplainer": kernel_explainer, "captum KernelShap": kernel_shap}


# --- games ---
def games(source: str, segments: int) -> tuple[str, dict[str, Game]]:
    """The picture's game for its likeliest class, by its logit and by its probability, and that class."""
    model = load("xai:photo20")
    batch = next(model.prepare(load_images(source)))
    labels = few_segments(batch, segments)
    n, top = int(labels.max()) + 1, int(batch.output().argmax())
    z = ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).to(torch.uint8)
    x = batch.inputs[0]
    paint, buffer, outputs = shown(x, mean_colours(x, labels), labels), x.new_empty(AT_ONCE, *x.shape), []
    for codes in z.split(AT_ONCE):
        paint(codes, buffer[: len(codes)])
        outputs.append(model.infer(buffer[: len(codes)]).double())
    logits = torch.cat(outputs)
    return model.class_name(top), {"logit": Game(n, logits[:, top]), "probability": Game(n, logits.softmax(1)[:, top])}


def few_segments(batch: Batch, count: int) -> Tensor:
    """So many superpixels (H, W): twice as many, of which the smallest joins its neighbour again and again."""
    labels = segment(batch.seen[0], "slic", 2 * count)
    while int(labels.max()) + 1 > count:
        labels = segment(batch.seen[0], merged(labels.numpy(), int(labels.flatten().bincount().min()) + 1))
    return labels


# --- the table ---
@dataclass(frozen=True)
class Row:
    """One value and budget: for each estimator its errors (pictures, seeds), ours first."""

    value: str
    evaluations: int
    errors: dict[str, np.ndarray]

    @property
    def least(self) -> bool:
        """Whether our mean is below every other, as printed."""
        mine, *others = (float(f"{errors.mean():.2e}") for errors in self.errors.values())
        return all(mine < other for other in others)

    @property
    def cells(self) -> tuple[str, ...]:
        """As they are printed: means, and the least of the others' in ours, with 95 % intervals."""
        told = []
        for errors in self.errors.values():
            low, high = np.quantile(resampled(errors), [0.025, 0.975])
            told.append(f"{errors.mean():.2e} ({low:.1e} to {high:.1e})")
        mine, *others = self.errors.values()
        peer = min(others, key=lambda errors: float(errors.mean()))
        low, high = np.quantile(resampled(peer) / resampled(mine), [0.025, 0.975])
        ratio = f"{peer.mean() / mine.mean():.2f} ({low:.2f} to {high:.2f})"
        return self.value, str(self.evaluations), *told, ratio, "yes" if self.least else "NO"


def resampled(errors: np.ndarray) -> np.ndarray:
    """Means of errors (pictures, seeds) over draws of a bootstrap of pictures, then seeds: the same for all."""
    rng, (pictures, seeds) = np.random.default_rng(0), errors.shape
    chosen = rng.integers(pictures, size=(DRAWS, pictures, 1))
    means: np.ndarray = errors[chosen, rng.integers(seeds, size=(DRAWS, pictures, seeds))].mean((1, 2))
    return means


HEAD = ("value", "evaluations", *ESTIMATORS, "best peer, in ours", "least")


def measured(all_games: Sequence[dict[str, Game]], budgets: Sequence[int], seeds: int) -> list[Row]:
    """Every estimator on every game, value, budget and seed."""
    rows = []
    for value in all_games[0]:
        for budget in budgets:
            found = {name: [[one(estimate, pictured[value], budget, seed) for seed in range(seeds)]
                            for pictured in all_games] for name, estimate in ESTIMATORS.items()}
            rows.append(Row(value, budget, {name: np.array(errors) for name, errors in found.items()}))
            print("  ".join(rows[-1].cells), file=sys.stderr, flush=True)
    return rows


def one(estimate: Callable[[Game, int, int], Tensor], game: Game, budget: int, seed: int) -> float:
    """The error of one run, which must have looked up as many scores as it may and no more."""
    game.asked = 0
    error = game.error(estimate(game, budget, seed))
    if game.asked != budget:
        raise SystemExit(f"{estimate.__name__} must ask for {budget} scores; got {game.asked}. Count them anew.")
    return error


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and give the exit code."""
    asked = _parser().parse_args(arguments)
    if asked.smoke:
        asked.pictures, asked.segments, asked.budgets, asked.seeds = asked.pictures[:1], 7, [24, 48], 2
    torch.set_num_threads(1)
    logging.getLogger("shap").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    found = []
    for source in asked.pictures:
        name, made = games(source, asked.segments)
        found.append((source, name, made))
        print(f"{source}: {name}, {made['logit'].n} segments", file=sys.stderr, flush=True)
    rows = measured([made for _, _, made in found], asked.budgets, asked.seeds)
    text = _markdown(rows) + "\n\n" + _about([(s, n, made["logit"].n) for s, n, made in found], asked) + "\n"
    print(text, end="")
    if asked.table:
        asked.table.parent.mkdir(parents=True, exist_ok=True)
        asked.table.write_text(text, encoding="utf-8")
    return 0 if all(row.least for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The error of Shapley values at equal budgets; exits 1 if not least.")
    parser.add_argument("--pictures", nargs="+", default=list(PICTURES), help="sources of one picture each")
    parser.add_argument("--segments", type=int, default=12, help="segments of a picture, at most (default 12)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 128, 256, 512], help="model evaluations")
    parser.add_argument("--seeds", type=int, default=40, help="runs of each estimator on each game (default 40)")
    parser.add_argument("--table", type=Path, help="also write the table here, in Markdown")
    parser.add_argument("--smoke", action="store_true", help="one picture, few segments, two seeds")
    return parser


def _markdown(rows: list[Row]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _about(found: list[tuple[str, str, int]], asked: argparse.Namespace) -> str:
    pictures = ", ".join(f"{source.removeprefix('sample:')} ({name}, {n} segments)" for source, name, n in found)
    peers = ", ".join(f"{name} {version(name)}" for name in PEERS)
    return (f"Mean of |estimate - truth|^2 / |truth|^2 over pictures and {asked.seeds} seeds, and the ratio of two "
            "means (95 % intervals of a bootstrap over pictures and seeds); truth from all coalitions; evaluations "
            f"count those of none and of all segments. xai:photo20, class: {pictures}; slic segments hidden by their "
            f"mean colour; {peers}.")


if __name__ == "__main__":
    sys.exit(main())
