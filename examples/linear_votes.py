"""How much of a classifier's answer do its pixels decide, and how much do its biases? A table, with its control.

Run from the root of the checkout:

    python examples/linear_votes.py --table examples/tables/linear_votes.md

For every photograph the network is taken as the system y = F x + r that it is there (`xai.linearize`). Of the class
with the highest score: the share |r| / (|F x| + |r|), where an input of zeros is the mean colour and where it is
black; the votes' size over their sum, sum |votes| / |sum votes| (how far they cancel); whether F x alone, and whether
r alone, has the same class in first place; the share of the offset that the constants of the last third of the layers
bring. Controls, of five draws in turns: weights drawn anew as at the start of a training, whose biases are mostly
zero; and the trained values of every weight and bias shuffled within their tensor, which keeps their sizes. Networks:
squeezenet1_0 with ImageNet weights on the 40 photographs of ../shared/images, and `xai:photo20` on its validation
photographs. Means with 95 % bootstrap intervals over photographs, shares of photographs with Wilson's. `--smoke`:
`xai:photo20` on scikit-image's pictures.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import xai
from xai.linear import Linear
from xai.statistics import interval, wilson

SHARED = Path(__file__).resolve().parents[2] / "shared"
SQUEEZENET, VALIDATION = "models/squeezenet1_0_imagenet.safetensors", "data/tinyimagenet20_val.parquet"
DRAWS = 5
MEANS = ("share of r", "share of r, black", "votes' size over sum", "last third of r")
SHARES = ("F x alone: same class", "r alone: same class")


def measured(model: xai.Model, x: Tensor) -> dict[str, float]:
    """The columns, of one input (1, C, H, W)."""
    linear = Linear(model, x)
    zero = model.preprocessing.constant(0.0).to(x).expand_as(x)
    votes, black = linear.forward(torch.cat([x, zero])).double()
    offset, said = linear.offset[0].double(), linear.y[0].double()
    best = int(said.argmax())
    direction = torch.zeros_like(linear.y)
    direction[0, best] = 1
    row, terms = linear.terms(direction)
    single = (row * x[0]).sum(0).double()
    late = sum(term.value for term in terms[len(terms) - len(terms) // 3 :])
    return {
        MEANS[0]: _share(votes[best], offset[best]),
        MEANS[1]: _share(votes[best] - black[best], offset[best] + black[best]),
        MEANS[2]: float(single.abs().sum() / single.sum().abs().clamp_min(1e-12)),
        MEANS[3]: late / float(offset[best]) if offset[best] else 0.0,
        SHARES[0]: float(votes.argmax() == best), SHARES[1]: float(offset.argmax() == best),
    }


def _share(votes: Tensor, offset: Tensor) -> float:
    return float(offset.abs() / (votes.abs() + offset.abs()).clamp_min(1e-12))


def cells(found: list[dict[str, float]]) -> list[str]:
    """Of all photographs: the median of the quotient that has no mean, means and shares with their intervals."""
    made = []
    for name in MEANS:
        values = torch.tensor([one[name] for one in found], dtype=torch.float64)
        if name in (MEANS[2], MEANS[3]):
            low, middle, high = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
            made.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        else:
            low, high = interval(values)
            made.append(f"{float(values.mean()):.3f} ({low:.3f} to {high:.3f})")
    for name in SHARES:
        hits = int(sum(one[name] for one in found))
        low, high = wilson(hits / len(found), len(found))
        made.append(f"{hits / len(found):.3f} ({low:.3f} to {high:.3f})")
    return made


def rows(spec: str, weights: str | None, images: xai.Images) -> Iterator[tuple[str, int, list[dict[str, float]]]]:
    """(network, N, what was measured): with its weights, with weights drawn anew, with its values shuffled."""
    def again() -> xai.Model:
        return xai.load(spec, weights=weights) if weights else xai.load(spec)

    trained, anew = again(), [xai.load(spec, weights="random", seed=k) for k in range(DRAWS)]
    mixed = [shuffled(again(), k) for k in range(DRAWS)]
    inputs = [batch.inputs[i : i + 1] for batch in trained.prepare(images) for i in range(len(batch))]
    yield f"`{spec}`", len(inputs), [measured(trained, x) for x in inputs]
    yield f"`{spec}`, random weights", len(inputs), [measured(anew[i % DRAWS], x) for i, x in enumerate(inputs)]
    yield f"`{spec}`, shuffled", len(inputs), [measured(mixed[i % DRAWS], x) for i, x in enumerate(inputs)]


def shuffled(model: xai.Model, seed: int) -> xai.Model:
    """The same values of every weight and bias in another order; running statistics stay."""
    draw = torch.Generator().manual_seed(seed)
    with model.opened() as network, torch.no_grad():
        for value in network.parameters():
            value.copy_(value.flatten()[torch.randperm(value.numel(), generator=draw)].view(value.shape))
    return model


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with models/, images/ and data/")
    parser.add_argument("--table", type=Path, help="where the Markdown table goes")
    parser.add_argument("--count", type=int, default=500, help="validation photographs, at most")
    parser.add_argument("--smoke", action="store_true", help="xai:photo20 on three of scikit-image's pictures")
    asked = parser.parse_args()
    sets: list[tuple[str, str | None, xai.Images]]
    if asked.smoke:
        sets = [("xai:photo20", None, xai.load_images([f"sample:{name}" for name in ("chelsea", "coffee", "rocket")]))]
    else:
        photographs = xai.load_images(asked.shared / VALIDATION)
        sets = [("torchvision:squeezenet1_0", str(asked.shared / SQUEEZENET), xai.load_images(asked.shared / "images")),
                ("xai:photo20", None, photographs[:: max(1, len(photographs) // asked.count)])]
    lines = [f"| network | N | {' | '.join((*MEANS, *SHARES))} |", "| --- " * (2 + len(MEANS) + len(SHARES)) + "|"]
    for spec, weights, images in sets:
        for name, count, found in rows(spec, weights, images):
            lines.append(f"| {name} | {count} | {' | '.join(cells(found))} |")
            print(lines[-1], flush=True)
    if asked.table:
        about = ("Mean, or median where the numbers are quotients (votes' size over sum, last third of r), with 95 % "
                 "bootstrap interval, quartiles of the quotients, Wilson's of the shares of photographs. Made by "
                 "`python examples/linear_votes.py --table examples/tables/linear_votes.md`.")
        asked.table.write_text("\n".join([*lines, "", about, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
