"""Guide a deep plain network by a residual one, layer by layer, after "Training the Untrainable".

Run from the root of the checkout:

    python examples/guidance.py --data ../shared/data        # six minutes on one core

A plain network of 24 convolutions, without shortcuts and without normalisation, learns 20 classes of Tiny ImageNet at
32 x 32 pixels from 2,000 photographs. Its loss is the cross entropy, and where it is guided also the sum over mapped
layers of 1 - CKA(its layer, the guide's layer), both of the same minibatch (Subramaniam et al. 2025, arXiv:2410.20035;
there the biased CKA, here the debiased one). Guide layer i of g goes to its own layer round(i (t - 1) / (g - 1)) of t.
The guide is `xai:photo20`, trained (on other photographs and on these) or with random weights; it never learns. Since
nothing is augmented, its Gram matrices over all photographs are made once. The control is the same network from the
same seeds without a guide. Every arm runs from each seed; curves are of a fixed probe set; intervals are over the 1,000
validation photographs. `--smoke` takes seconds, drawn pictures where the data is absent, and writes nothing; otherwise
the table goes to examples/tables/guidance.md, the curves to guidance.csv and guidance.svg beside it.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a shared machine

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train_photo20 import Photographs, drawn, load, split

from xai import seeds
from xai.similarity import gram, ucentred
from xai.statistics import interval
from xai.zoo.loading import load as load_model
from xai.zoo.nets.photo20 import photo20

TABLE = Path(__file__).resolve().parent / "tables" / "guidance.md"
COMMAND = "python examples/guidance.py --data ../shared/data"
ARMS = ("alone", "guided by photo20", "guided by random weights")
SIZE, PROBE, WATCHED = 32, 64, 250  # pixels; photographs for CKA and for the validation loss on the way


@dataclass(frozen=True)
class Recipe:
    """Every number that the runs depend on."""

    per_class: int = 100
    batch: int = 100
    steps: int = 200
    rate: float = 1e-3
    weight: float = 1.0
    seeds: tuple[int, ...] = (0, 1, 2)
    checkpoints: int = 8


class Plain(nn.Module):
    """`depth` convolutions of 3 x 3 with ReLU in three stages, pooled, a linear layer. `outputs` are all of them."""

    def __init__(self, classes: int = 20, depth: int = 24, width: int = 16) -> None:
        super().__init__()
        layers, before = [], 3
        for i in range(depth):
            stage, first = divmod(i, depth // 3)
            layers.append(nn.Conv2d(before, width << stage, 3, padding=1, stride=2 if first == 0 else 1))
            before = width << stage
            nn.init.kaiming_normal_(layers[-1].weight, nonlinearity="relu")
            nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]  # these have one
        self.layers, self.head = nn.ModuleList(layers), nn.Linear(before, classes)

    def outputs(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and what every convolution gives before its ReLU."""
        seen = []
        for layer in self.layers:
            seen.append(layer(x))
            x = seen[-1].relu()
        return self.head(x.mean((2, 3))), seen


def mapping(guide: int, target: int) -> list[tuple[int, int]]:
    """(guide's layer, target's layer), evenly spread from the first to the last; of one guide layer to the last."""
    return [(i, round(i * (target - 1) / (guide - 1)) if guide > 1 else target - 1) for i in range(guide)]


def guide_layers(net: nn.Module) -> list[str]:
    """The convolutions along the trunk, in the order in which they run; no shortcuts."""
    return [name for name, part in net.named_modules() if isinstance(part, nn.Conv2d) and "shortcut" not in name]


@torch.no_grad()
def guide_grams(net: nn.Module, inputs: Tensor) -> Tensor:
    """(layers, n, n): inner products of the features of all pictures, which are kept in half precision meanwhile."""
    seen: dict[str, list[Tensor]] = {name: [] for name in guide_layers(net)}
    handles = [net.get_submodule(name).register_forward_hook(
        lambda _, __, out, name=name: seen[name].append(out.half())) for name in seen]
    for part in inputs.split(100):
        net(part)
    for handle in handles:
        handle.remove()
    return torch.stack([gram(torch.cat(seen.pop(name)))[0].float() for name in list(seen)])


def likeness(features: Sequence[Tensor], guide: Tensor) -> Tensor:
    """(layers,): debiased linear CKA of a minibatch's features with the guide's Gram matrices (layers, n, n)."""
    own = ucentred(torch.stack([gram(one)[0] for one in features]))
    other = ucentred(guide.double())  # of all pictures centred or of these: U-centring forgets the difference
    norm = (own.square().sum((1, 2)) * other.square().sum((1, 2))).sqrt()
    return (own * other).sum((1, 2)) / norm.clamp(min=1e-30)


@dataclass(frozen=True)
class Data:
    """Training and validation pictures, ready for the network, and their labels."""

    inputs: Tensor
    labels: Tensor
    held: Tensor
    held_labels: Tensor


@dataclass
class Trained:
    """One run: rows of (step, training loss, validation loss, CKA with the trained guide), and which are right."""

    curve: list[tuple[int, float, float, float]]
    right: Tensor


def run(data: Data, arm: str, seed: int, guides: dict[str, Tensor], probe: Tensor, recipe: Recipe) -> Trained:
    """Train one network of one arm from one seed."""
    random = seeds.generator(seed, "guidance", "order")
    with torch.random.fork_rng():
        torch.manual_seed(seeds.derive(seed, "guidance", "weights") % 2**31)
        net = Plain(int(data.labels.max()) + 1)
    pairs = mapping(len(probe), len(net.layers))
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.rate)
    curve, losses = [], list[float]()
    for step, index in enumerate(batches(len(data.labels), recipe, random)):
        logits, seen = net.outputs(data.inputs[index])
        loss = functional.cross_entropy(logits, data.labels[index])
        losses.append(float(loss.detach()))
        if arm in guides:
            wanted = guides[arm][:, index][:, :, index]
            loss = loss + recipe.weight * (1 - likeness([seen[t] for _, t in pairs], wanted)).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if (step + 1) % max(1, recipe.steps // recipe.checkpoints) == 0:
            curve.append((step + 1, sum(losses) / len(losses), *measured(net, data, probe, pairs)))
            losses = []
    with torch.no_grad():
        right = torch.cat([net.outputs(part)[0].argmax(1) for part in data.held.split(250)]) == data.held_labels
    return Trained(curve, right)


def batches(count: int, recipe: Recipe, random: torch.Generator) -> Iterator[Tensor]:
    """`steps` minibatches, epoch after epoch, without the short last one."""
    done = 0
    while done < recipe.steps:
        for index in torch.randperm(count, generator=random).split(recipe.batch)[: count // recipe.batch]:
            if done < recipe.steps:
                yield index
            done += 1


@torch.no_grad()
def measured(net: Plain, data: Data, probe: Tensor, pairs: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Validation loss, and the mean CKA of the mapped layers, on the first validation pictures."""
    logits, seen = net.outputs(data.held[:WATCHED])
    cka = likeness([seen[t][: probe.shape[1]] for _, t in pairs], probe)
    return float(functional.cross_entropy(logits, data.held_labels[:WATCHED])), float(cka.mean())


def ready(photos: Photographs, index: Tensor) -> Tensor:
    """(n, 3, 32, 32): small, and in units of its own spread."""
    small = functional.interpolate(photos.pixels[index].float() / 255, size=SIZE, mode="area")
    return (small - 0.45) / 0.27


def guide_inputs(photos: Photographs, index: Tensor) -> Tensor:
    """(n, 3, 32, 32), as photo20 takes them, but for their size."""
    model = load_model("xai:photo20", device="cpu").preprocessing
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.mean, model.std))
    small = functional.interpolate(photos.pixels[index].float() / 255, size=SIZE, mode="area")
    return (small - mean) / std


def rows(trained: dict[tuple[str, int], Trained], recipe: Recipe) -> list[str]:
    """A line of the table for each arm."""
    lines = []
    right = {arm: torch.stack([trained[arm, s].right.double() for s in recipe.seeds]) for arm in ARMS}
    for arm in ARMS:
        each = right[arm].mean(1)
        low, high = interval(right[arm].mean(0))
        gap = (right[arm] - right["alone"]).mean(0)
        less, more = interval(gap)
        ends = [trained[arm, s].curve[-1] for s in recipe.seeds]
        means = [sum(end[k] for end in ends) / len(ends) for k in (1, 2, 3)]
        beside = "-" if arm == "alone" else f"{100 * float(gap.mean()):+.1f} ({100 * less:+.1f} to {100 * more:+.1f})"
        lines.append(f"| {arm} | {100 * float(each.mean()):.1f} % ({100 * low:.1f} to {100 * high:.1f}) |"
                     f" {100 * float(each.min()):.1f} to {100 * float(each.max()):.1f} % | {beside} |"
                     f" {means[0]:.2f} | {means[1]:.2f} | {means[2]:.2f} |")
    return lines


def curves(trained: dict[tuple[str, int], Trained], recipe: Recipe) -> list[list[str]]:
    """The means over seeds at every checkpoint: step, then training loss, validation loss and CKA of each arm."""
    found = []
    for k in range(len(trained[ARMS[0], recipe.seeds[0]].curve)):
        cells = [str(trained[ARMS[0], recipe.seeds[0]].curve[k][0])]
        for column in (1, 2, 3):
            for arm in ARMS:
                cells.append(f"{sum(trained[arm, s].curve[k][column] for s in recipe.seeds) / len(recipe.seeds):.3f}")
        found.append(cells)
    return found


def page(trained: dict[tuple[str, int], Trained], recipe: Recipe, count: int, minutes: float) -> str:
    """The page with its tables."""
    held = len(trained[ARMS[0], recipe.seeds[0]].right)
    heads = ["step", *(f"{what}, {arm}" for what in ("training loss", "validation loss", "CKA") for arm in ARMS)]
    return "\n".join([
        "# A plain network guided by a residual one", "",
        f"24 convolutions without shortcuts or normalisation, {count:,} photographs of 20 classes at {SIZE} x {SIZE},"
        f" {recipe.steps} steps of {recipe.batch}, Adam at {recipe.rate:g}, seeds {', '.join(map(str, recipe.seeds))}."
        f" Accuracy on {held:,} validation photographs, mean over seeds, 95 % bootstrap interval over photographs;"
        " the gain is paired by photograph and seed. Chance is 5 %. CKA: debiased, linear, with the trained guide, mean"
        f" over the mapped layers, on {PROBE} of the validation photographs; the validation loss is that of {WATCHED}."
        f" {minutes:.0f} minutes of one core. Made by `{COMMAND}`.", "",
        "| | accuracy | each seed's | gain over alone | training loss | validation loss | CKA |",
        "| --- | --- | --- | --- | --- | --- | --- |", *rows(trained, recipe), "",
        "Means over the seeds on the way:", "",
        "| " + " | ".join(heads) + " |", "| " + " | ".join(["---"] * len(heads)) + " |",
        *("| " + " | ".join(cells) + " |" for cells in curves(trained, recipe))]) + "\n"  # fmt: skip


def loaded(folder: Path, smoke: bool, recipe: Recipe) -> tuple[Photographs, Photographs]:
    """Training photographs, so many of each class, and validation photographs."""
    paths = [folder / f"tinyimagenet20_{part}.parquet" for part in ("train", "val")]
    if smoke:
        photos = drawn()
        return photos, photos
    if not all(path.is_file() for path in paths):
        raise SystemExit(f"--data must be a folder that holds {paths[0].name} and {paths[1].name}; got {folder}. "
                         "Name that folder.")
    photos, held = (load(path) for path in paths)
    return photos.part(split(photos.labels, recipe.per_class, 0)[1]), held


def write(text: str, found: dict[tuple[str, int], Trained], table: Path) -> None:
    """The page, and every curve of every seed beside it."""
    table.write_text(text, encoding="utf-8")
    with table.with_suffix(".csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arm", "seed", "step", "training_loss", "validation_loss", "cka"])
        for (arm, seed), one in found.items():
            rows.writerows([arm, seed, step, *(f"{v:.4f}" for v in row)] for step, *row in one.curve)


def draw(table: Path) -> None:
    """The curves that `write` wrote, as guidance.svg beside them: a line a seed."""
    from matplotlib import pyplot

    with table.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for ax, column in zip(axes, ("training_loss", "validation_loss", "cka"), strict=True):
        for arm, colour in zip(ARMS, ("0.4", "tab:orange", "tab:blue"), strict=True):
            for seed in dict.fromkeys(row["seed"] for row in rows):
                own = [row for row in rows if row["arm"] == arm and row["seed"] == seed]
                ax.plot([int(row["step"]) for row in own], [float(row[column]) for row in own], color=colour,
                        label=arm if seed == rows[0]["seed"] else None)
        ax.set(xlabel="step", title=column.replace("_", " ").replace("cka", "CKA with the trained guide"))
    axes[0].legend(frameon=False)
    figure.savefig(table.with_suffix(".svg"), metadata={"Date": None})


def main() -> None:
    """Load, make the guides' Gram matrices, train every arm from every seed, write."""
    parser = argparse.ArgumentParser(description="A deep plain network guided by a residual one through CKA.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the Parquet files")
    parser.add_argument("--smoke", action="store_true", help="a run of seconds; write nothing")
    parser.add_argument("--table", type=Path, default=TABLE, help="Markdown file to write; the curves go beside it")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(batch=40, steps=4, seeds=(0,), checkpoints=2) if asked.smoke else Recipe()
    started = time.process_time()
    photos, held = loaded(asked.data, asked.smoke, recipe)
    every = torch.randperm(len(held.labels), generator=seeds.generator(0, "guidance", "held"))
    data = Data(ready(photos, torch.arange(len(photos.labels))), photos.labels, ready(held, every), held.labels[every])
    trained_guide = load_model("xai:photo20", device="cpu").runner(None).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = {ARMS[1]: trained_guide, ARMS[2]: photo20(20).eval()}
    inputs = guide_inputs(photos, torch.arange(len(photos.labels)))
    guides = {arm: guide_grams(net, inputs) for arm, net in nets.items()}
    probe = guide_grams(trained_guide, guide_inputs(held, every[:PROBE]))
    found: dict[tuple[str, int], Trained] = {}
    for seed in recipe.seeds:
        for arm in ARMS:
            found[arm, seed] = one = run(data, arm, seed, guides, probe, recipe)
            print(f"seed {seed}, {arm}: training loss {one.curve[-1][1]:.2f}, CKA {one.curve[-1][3]:.2f}, "
                  f"accuracy {float(one.right.double().mean()):.3f}, {time.process_time() - started:.0f} s", flush=True)
        done = replace(recipe, seeds=recipe.seeds[: recipe.seeds.index(seed) + 1])  # to be looked at
        text = page(found, done, len(photos.labels), (time.process_time() - started) / 60)
        if not asked.smoke:
            write(text, found, asked.table)
            draw(asked.table)
    print(text)


if __name__ == "__main__":
    main()
