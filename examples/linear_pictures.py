"""Pictures of what the shipped networks for pictures do at one picture: y = F x + r, rows, columns, singular pictures.

Run from the root of the checkout:

    python examples/linear_pictures.py --out linear-out                      # scikit-image's astronaut
    python examples/linear_pictures.py --out linear-out ../shared/images/n01843383_toucan.jpg

Of each picture and network it writes NETWORK-PICTURE-split.png (x, y, F x, and r on a scale of its own, grey for 0),
-rows.png (effective filters of twelve output pixels of strong edges, each under the surroundings that it sees),
-columns.png (projective filters: what one input pixel becomes, of the same places) and -singular.png (the leading
singular pictures: the input's side, its 16x16 pixels round the largest, and the output's side there). Filters are
drawn summed over channels, blue for negative, red for positive, each on its own scale. The middle 64x64 pixels of the
spoilt picture are taken; the measures of all this over many photographs are those of linear_restoration.py. `--smoke`
draws the astronaut for one network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluate_restoration import picture, sample
from linear_restoration import LUMA, REACH, cut, edges, middle, rows_at
from train_restoration import NETS, spoilt

from xai.linear import Linear, linearize
from xai.zoo.loading import load

PLACES, PAIRS, TILE, NEAR = 12, 6, 120, 16


def signed(map_: Tensor) -> Tensor:
    """A map (h, w) as (3, h, w) in [0, 1]: white at 0, red above, blue below, on its own symmetric scale."""
    size = (map_ / map_.abs().max().clamp_min(1e-30)).float()
    up, down = size.clamp_min(0), (-size).clamp_min(0)
    return torch.stack([1 - down, 1 - up - down, 1 - up])


def tile(shown: Tensor) -> Tensor:
    """A picture (3, h, w) enlarged to about TILE pixels, each pixel a square, with a white rim."""
    made = functional.interpolate(shown[None].float().clamp(0, 1), (TILE, TILE), mode="nearest")[0]
    return functional.pad(made, (4, 4, 4, 4), value=1.0)


def sheet(rows: Sequence[Sequence[Tensor]], file: Path) -> None:
    """Write tiles, row below row, as a PNG."""
    from PIL import Image

    made = torch.cat([torch.cat([tile(one) for one in row], 2) for row in rows], 1)
    Image.fromarray((made * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(file)


def strong(linear: Linear, reach: int) -> Tensor:
    """Input pixels (PLACES, 2) of the strongest, most coherent edges, no two of them close together."""
    _, coherence = edges(linear.x)
    grey = (linear.x[0] * LUMA.view(3, 1, 1)).sum(0)
    contrast = functional.avg_pool2d((grey - functional.avg_pool2d(grey[None, None], 5, 1, 2)[0, 0]).square()[None],
                                     5, 1, 2)[0]  # fmt: skip
    score = (coherence * contrast).float()
    score[:reach], score[-reach:], score[:, :reach], score[:, -reach:] = -1, -1, -1, -1
    places = []
    for _ in range(PLACES):
        y, x = divmod(int(score.argmax()), score.shape[1])
        places.append((y, x))
        score[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5] = -1
    return torch.tensor(places)


def columns_at(linear: Linear, places: Tensor) -> Tensor:
    """What a grey step at input pixels (k, 2) becomes: (k, 3, scale H, scale W)."""
    v = torch.zeros(len(places), *linear.x.shape[1:], dtype=linear.x.dtype)
    v[torch.arange(len(places)), :, places[:, 0], places[:, 1]] = 1
    return linear.forward(v)


def draw(linear: Linear, scale: int, reach: int, out: Path, name: str) -> None:
    """Write the four pictures of one network at one input."""
    x, y, r = linear.x[0], linear.y[0], linear.offset[0]
    offset = 0.5 + r / (2 * float(r.abs().max()) or 1)
    sheet([[x, y, y - r, offset]], out / f"{name}-split.png")
    own = strong(linear, reach)
    seen = [x[:, a - reach : a + reach + 1, b - reach : b + reach + 1] for a, b in own.tolist()]
    rows = cut(rows_at(linear, own * scale + scale // 2), own, reach).sum(1)
    sheet([seen[:6], [signed(one) for one in rows[:6]], seen[6:], [signed(one) for one in rows[6:]]],
          out / f"{name}-rows.png")  # fmt: skip
    made, wide = columns_at(linear, own).sum(1), reach * scale
    columns = [signed(one[a * scale - wide : (a + 1) * scale + wide, b * scale - wide : (b + 1) * scale + wide])
               for one, (a, b) in zip(made, own.tolist(), strict=True)]  # fmt: skip
    sheet([seen[:6], columns[:6], seen[6:], columns[6:]], out / f"{name}-columns.png")
    pairs = linear.singular(PAIRS, steps=10, more=8)
    peaks = [peak(one) for one in pairs.right]
    near = [[signed(one.sum(0)[a * k : (a + NEAR) * k, b * k : (b + NEAR) * k])
             for one, (a, b) in zip(side, peaks, strict=True)]
            for side, k in ((pairs.right, 1), (pairs.left, scale))]  # fmt: skip
    sheet([[signed(one.sum(0)) for one in pairs.right], *near], out / f"{name}-singular.png")


def peak(one: Tensor) -> tuple[int, int]:
    """Top left corner of the NEAR x NEAR pixels round the largest of a picture (3, H, W)."""
    h, w = one.shape[1:]
    y, x = divmod(int(one.square().sum(0).argmax()), w)
    return min(max(0, y - NEAR // 2), h - NEAR), min(max(0, x - NEAR // 2), w - NEAR)


def main() -> None:
    """Draw what was asked for."""
    parser = argparse.ArgumentParser(description="Draw the shipped networks for pictures as linear systems.")
    parser.add_argument("pictures", nargs="*", type=Path, help="picture files; default: scikit-image's astronaut")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; nothing else is written")
    parser.add_argument("--smoke", action="store_true", help="one network, the astronaut")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    shown = {file.stem: picture(file) for file in args.pictures} or {"astronaut": next(sample("astronaut"))}
    for name in ["espcn-x3"] if args.smoke else NETS:
        model, scale = load(f"xai:{name}", device="cpu"), NETS[name].scale
        for title, pixels in shown.items():
            given, _ = middle(*spoilt(pixels, scale, torch.Generator().manual_seed(0)), scale)
            draw(linearize(model, given), scale, REACH[name], args.out, f"{name}-{title}")
            print(f"{args.out / name}-{title}-*.png")


if __name__ == "__main__":
    main()
