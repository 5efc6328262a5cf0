"""What the shipped networks for pictures do, read from the affine system y = F x + r that each is for one picture.

Run from the root of the checkout:

    python examples/linear_restoration.py --table examples/tables/linear_restoration.md

Pictures: the 40 photographs of `../shared/images`, which no training read, spoilt as in evaluate_restoration.py; the
middle 64x64 pixels of what the network is given. `xai.linearize` gives F and r there. A row of F (an effective filter:
what an output pixel sees) is asked of the luma of 64 output pixels a photograph, drawn by a seed, none of whose
receptive fields leaves the picture; it is cut to its receptive field (9x9 pixels, 15x15 of the denoiser), outside of
which it is zero, which is checked. Means over photographs with 95 % bootstrap intervals (ratios linearised: a
photograph counts by its share of the denominator). Controls: the same network with random weights, drawn anew for each
photograph, and bicubic enlarging (torch's), whose rows are the same everywhere.

(a) Wavelet-like? A wavelet has no mean, is localised, passes a band, and has a direction. Of a row, summed over input
channels: gain at frequency 0 (its sum); the same relative to its largest gain at any frequency (0: a wavelet, 1: low
pass); radius, the root mean square distance of its energy from the output pixel; along edges: mean of cos 2(a - e), a
the direction of the long axis of its energy, e that of the edge there (structure tensor, weighted by its coherence; 1:
along the edge, -1: across, 0: by chance), and the same with the edges of the other places. The same of what the network
adds: rows of F less those of bicubic enlarging, or less the identity (of random super-resolution nothing is taken off,
as it enlarges nothing). Of the four leading singular pictures on the input's side (12 photographs): energy in the mean;
area, 1 / sum of squared shares of the energy, part of the picture's (one sinusoid: 2/3, one pixel: 0.0002); mean
frequency and its spread, cycles a pixel (0.5 is the finest along an axis; white noise has 0.38 and 0.14).

(b) The offset: sum |r| / (sum |F x| + sum |r|); the mean of r over the mean of y; PSNR of F x, of F x and r's mean, and
of y, against the true photograph, and that of F x above bicubic enlarging or the noisy picture. Gain of flat pictures:
the mean of F 1. Flat: correlation of r with m (1 - F 1), what it takes to keep a flat picture of the local mean m at
its level.

(c) Copied, moved or made: what an output pixel says above its surroundings, y - m, m the mean of the receptive field,
is the sum of three: votes w (x - m) within one pixel of its own place (copied), votes from farther (moved or averaged),
and what needs no detail of the picture at all: r and the flat part, r - m (1 - F 1) (made: a template). Each one's
share is its covariance with y - m over the variance of y - m over places; they add up to 1. A network that does not
keep the level of a flat picture has that in the third, so beside it stands r's share of y - m F 1, where levels count
for nothing. Weight near: |w| within one pixel over all |w|; largest near: how often the row's largest weight lies
within one pixel of its own place; moved by: distance of the centre of |w| from it.

`linear_pictures.py` draws rows, columns (projective filters), singular pictures and y = F x + r. `--smoke` takes
scikit-image's pictures and few places, and writes nothing.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluate_restoration import SAMPLES, native, sample
from train_restoration import NETS, psnr, spoilt

from xai.linear import Linear, linearize
from xai.model import Model
from xai.statistics import interval
from xai.zoo.loading import load

COMMAND = "python examples/linear_restoration.py --table examples/tables/linear_restoration.md"
SIDE, PLACES, PAIRS = 64, 64, 4
WITH_SINGULAR = 12  # photographs
REACH = {"espcn-x2": 4, "espcn-x3": 4, "denoiser": 7}  # pixels of the input on each side of an output pixel's own
LUMA = torch.tensor([0.299, 0.587, 0.114])
Parts = dict[str, tuple[float, float]]  # measure -> numerator and denominator of one photograph


class Bicubic(nn.Module):
    """Bicubic enlarging, which is linear and the same everywhere."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, 3, scale h, scale w)."""
        return functional.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)


# Rows


def drawn(count: int, scale: int, reach: int, seed: int, side: int = SIDE) -> Tensor:
    """Output pixels (count, 2), row and column, whose receptive fields lie within the input."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(reach * scale, (side - reach) * scale, (count, 2), generator=generator)


def rows_at(linear: Linear, places: Tensor) -> Tensor:
    """Rows (k, 3, H, W) of the luma of output pixels (k, 2)."""
    u = torch.zeros(len(places), *linear.y.shape[1:], dtype=linear.y.dtype)
    u[torch.arange(len(places)), :, places[:, 0], places[:, 1]] = LUMA.to(u)
    return linear.transpose(u)


def cut(pictures: Tensor, centres: Tensor, reach: int) -> Tensor:
    """(k, 3, 2 reach + 1, 2 reach + 1) of pictures (k, 3, H, W) round pixels (k, 2); raises where one is not zero
    outside."""
    made = torch.stack([one[:, y - reach : y + reach + 1, x - reach : x + reach + 1]
                        for one, (y, x) in zip(pictures, centres.tolist(), strict=True)])  # fmt: skip
    if not torch.equal((made != 0).sum(), (pictures != 0).sum()):
        raise SystemExit("a row must be zero outside its receptive field; got one that is not. Mend REACH.")
    return made


def grid(reach: int) -> tuple[Tensor, Tensor]:
    """Distances down and across from the middle of a window."""
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    return line[:, None].expand(len(line), -1), line[None].expand(len(line), -1)


def shape_of(filters: Tensor, off: Tensor) -> dict[str, Tensor]:
    """Of filters (k, s, s): sum, gain at 0 over the largest gain, radius about `off` (k, 2), direction of the long axis
    of the energy (angle from the columns' axis, radians)."""
    down, across = grid(filters.shape[-1] // 2)
    gains = torch.fft.rfft2(filters, s=(64, 64)).abs()
    energy = filters.square() / filters.square().sum((1, 2), keepdim=True)
    y, x = down - off[:, 0, None, None], across - off[:, 1, None, None]
    radius = (energy * (y.square() + x.square())).sum((1, 2)).sqrt()
    y, x = (t - (energy * t).sum((1, 2), keepdim=True) for t in (y, x))
    yy, xx, xy = ((energy * t).sum((1, 2)) for t in (y * y, x * x, x * y))
    return {"sum": filters.sum((1, 2)), "low": gains[:, 0, 0] / gains.amax((1, 2)), "radius": radius,
            "angle": 0.5 * torch.atan2(2 * xy, xx - yy)}  # fmt: skip


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Direction of the edge (radians, as in `shape_of`) and its coherence (0 to 1) at each pixel of (1, 3, H, W): the
    structure tensor of the luma's Sobel slopes, summed over 5x5 pixels."""
    grey = (x[0].double() * LUMA.double().view(3, 1, 1)).sum(0)[None, None]
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)
    padded = functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    gx, gy = (functional.conv2d(padded, kernel[None, None]) for kernel in (sobel, sobel.T))
    xx, yy, xy = (functional.avg_pool2d(t, 5, 1, 2)[0, 0] for t in (gx * gx, gy * gy, gx * gy))
    strength = ((xx - yy).square() + 4 * xy.square()).sqrt()
    return 0.5 * torch.atan2(2 * xy, xx - yy) + math.pi / 2, strength / (xx + yy).clamp_min(1e-12)


# Measures of one photograph


def of_rows(linear: Linear, scale: int, reach: int, places: Tensor, take_off: bool) -> Parts:
    """(a) of the rows, and of what they add, and (c)."""
    own = places // scale
    windows = cut(rows_at(linear, places), own, reach).double()
    fixed = linearize(Model(Bicubic(scale).eval(), mean=(0.0,), std=(1.0,), size=SIDE), linear.x)
    added = windows - cut(rows_at(fixed, places), own, reach).double() if take_off else windows
    off = (places.double() + 0.5) / scale - 0.5 - own
    angle, coherence = (value[own[:, 0], own[:, 1]] for value in edges(linear.x))
    parts = Parts()
    for before, filters in (("", windows), ("added ", added)):
        found = shape_of(filters.sum(1), off)
        if not torch.isfinite(found["low"]).all():  # nothing is added
            continue
        parts.update({before + name: (float(found[name].mean()), 1.0) for name in ("sum", "low", "radius")})
        for name, shift in (("along", 0), ("along others", 1)):
            e, c = angle.roll(shift), coherence.roll(shift)
            parts[before + name] = (float((c * (2 * (found["angle"] - e)).cos()).mean()), float(c.mean()))
    return {**parts, **of_votes(linear, windows, places, own)}


def of_votes(linear: Linear, windows: Tensor, places: Tensor, own: Tensor) -> Parts:
    """(c) from rows cut to their receptive fields, (k, 3, s, s) float64."""
    reach = windows.shape[-1] // 2
    patches = torch.stack([linear.x[0, :, y - reach : y + reach + 1, x - reach : x + reach + 1]
                           for y, x in own.tolist()]).double()  # fmt: skip
    means, luma = patches.mean((2, 3)), LUMA.double()
    votes = (windows * (patches - means[:, :, None, None])).sum(1)
    down, across = grid(reach)
    near = (down.abs() <= 1) & (across.abs() <= 1)
    y, r = ((value[0, :, places[:, 0], places[:, 1]].double() * luma[:, None]).sum(0)
            for value in (linear.y, linear.offset))  # fmt: skip
    level = means @ luma
    flat = (windows.sum((2, 3)) * means).sum(1)
    three = {"copied": votes[:, near].sum(1), "moved": votes[:, ~near].sum(1),
             "made": r + flat - level}  # fmt: skip
    parts = {name: shared(value, y - level) for name, value in three.items()}
    parts["offset part"] = shared(r, y - flat)
    size = windows.abs().sum(1)
    parts["weight near"] = (float(size[:, near].sum()), float(size.sum()))
    top = size.flatten(1).argmax(1)
    weight = size / size.sum((1, 2), keepdim=True)
    parts["top near"] = (float(near.flatten()[top].double().mean()), 1.0)
    centre = torch.stack([(weight * line).sum((1, 2)) for line in (down, across)])
    parts["shift"] = (float(centre.square().sum(0).sqrt().mean()), 1.0)
    return parts


def shared(part: Tensor, whole: Tensor) -> tuple[float, float]:
    """Covariance of a part with the whole (k,), and the whole's variance."""
    whole = whole - whole.mean()
    return float((whole * part).mean()), float(whole.square().mean())


def of_offset(linear: Linear, scale: int, reach: int, true: Tensor | None) -> Parts:
    """(b), without the pixels whose receptive field leaves the picture."""
    edge = reach * scale
    inner = (..., slice(edge, linear.y.shape[-2] - edge), slice(edge, linear.y.shape[-1] - edge))
    y, r = linear.y[inner].double(), linear.offset[inner].double()
    moved, flat = y - r, linear.forward(torch.ones_like(linear.x))[inner].double()
    side = 2 * reach + 1
    mean = functional.interpolate(functional.avg_pool2d(linear.x.double(), side, 1), size=None, scale_factor=scale)
    share = (float(r.abs().mean()), float(moved.abs().mean() + r.abs().mean()))
    parts = {"offset": share, "flat gain": (float(flat.mean()), 1.0)}
    both = torch.stack([r.flatten(), (mean * (1 - flat)).flatten()])
    if float(both.std(1).min()) > 1e-9:
        parts["flat"] = (float(torch.corrcoef(both)[0, 1]), 1.0)
    if true is not None:
        parts["offset mean"] = (float(r.mean()), float(y.mean()))
        for name, picture in (("psnr Fx", moved), ("psnr mean", moved + r.mean()), ("psnr", y)):
            parts[name] = (float(psnr(picture.float(), true[inner], 0)), 1.0)
        fixed = Bicubic(scale)(linear.x)[inner]
        parts["psnr gain"] = (parts["psnr Fx"][0] - float(psnr(fixed, true[inner], 0)), 1.0)
    return parts


def of_pictures(pictures: Tensor) -> Parts:
    """(a) of singular pictures (k, 3, H, W) of unit length."""
    v = pictures.double()
    h, w = v.shape[2:]
    mean = v.sum((2, 3)).square().sum(1) / (h * w)
    area = 1 / v.square().sum(1).square().sum((1, 2)) / (h * w)
    power = torch.fft.fft2(v).abs().square().sum(1)
    power = power / power.sum((1, 2), keepdim=True)
    radius = torch.hypot(torch.fft.fftfreq(h).double()[:, None], torch.fft.fftfreq(w).double()[None])
    centre = (power * radius).sum((1, 2))
    spread = ((power * radius.square()).sum((1, 2)) - centre.square()).clamp_min(0).sqrt()
    return {name: (float(value.mean()), 1.0) for name, value in
            (("v mean", mean), ("v area", area), ("v frequency", centre), ("v spread", spread))}  # fmt: skip


def of_singular(linear: Linear) -> Parts:
    """(a) of the leading singular pictures, and how far the first pair is from one: |F^T u - s v| / s."""
    pairs = linear.singular(PAIRS, steps=10, more=8)
    v = pairs.right / pairs.right.flatten(1).norm(dim=1)[:, None, None, None]
    back = linear.transpose(pairs.left[:1].to(linear.y))[0].double()
    s = float(pairs.values[0])
    return {**of_pictures(v), "s": (s, 1.0), "s miss": (float((back - s * v[0].double()).norm()) / s, 1.0)}


# All photographs


def ratio(parts: list[tuple[float, float]]) -> tuple[float, float, float]:
    """The mean numerator over the mean denominator, with the 95 % interval over photographs."""
    top, bottom = torch.tensor(parts, dtype=torch.float64).T
    share = float(top.mean() / bottom.mean())
    low, high = interval(share + (top - share * bottom) / bottom.mean())
    return share, low, high


def middle(given: Tensor, true: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """The middle 64x64 pixels of the input, and what they show of the true picture."""
    top, left = ((side - SIDE) // 2 for side in given.shape[2:])
    square = given[:, :, top : top + SIDE, left : left + SIDE]
    return square, true[:, :, top * scale : (top + SIDE) * scale, left * scale : (left + SIDE) * scale]


def study(name: str, which: Callable[[int], Model], pictures: Iterator[Tensor], places: int, singular: int,
          trained: bool) -> dict[str, list[tuple[float, float]]]:
    """All measures of all photographs; `which` gives the model for the photograph of that number."""
    scale, reach = NETS[name].scale, REACH[name]
    generator, found = torch.Generator().manual_seed(0), dict[str, list[tuple[float, float]]]()
    for number, pixels in enumerate(pictures):
        given, true = middle(*spoilt(pixels, scale, generator), scale)
        linear = linearize(which(number), given)
        parts = of_rows(linear, scale, reach, drawn(places, scale, reach, number), trained or scale == 1)
        parts.update(of_offset(linear, scale, reach, true if trained else None))
        if number < singular:
            parts.update(of_singular(linear))
        for measure, pair in parts.items():
            found.setdefault(measure, []).append(pair)
    return found


TABLES: dict[str, tuple[tuple[str, str, int], ...]] = {  # title -> (measure, column, digits)
    "(a) Rows": (("sum", "gain at 0", 2), ("low", "gain at 0 / largest", 2), ("radius", "radius, px", 2),
                 ("along", "along edges", 2), ("along others", "along other places' edges", 2)),
    "(a) What the rows add": (("added sum", "gain at 0", 2), ("added low", "gain at 0 / largest", 2),
                              ("added radius", "radius, px", 2), ("added along", "along edges", 2),
                              ("added along others", "along other places' edges", 2)),
    "(a) Singular pictures": (("s", "largest singular value", 2), ("v mean", "energy in the mean", 3),
                              ("v area", "area", 3), ("v frequency", "frequency", 3), ("v spread", "its spread", 3),
                              ("s miss", "first pair's error", 3)),
    "(b) Offset": (("offset", "share of r", 3), ("offset mean", "mean of r / mean of y", 3),
                   ("flat gain", "gain of flat pictures", 3), ("flat", "flat", 2), ("psnr Fx", "PSNR of F x", 1),
                   ("psnr gain", "above plain", 2),
                   ("psnr mean", "PSNR of F x + mean r", 1), ("psnr", "PSNR of y", 1)),
    "(c) Copied, moved, made": (("copied", "copied", 3), ("moved", "moved", 3), ("made", "made", 3),
                                ("offset part", "r's share of y - m F 1", 3), ("weight near", "weight near", 2),
                                ("top near", "largest near", 2), ("shift", "moved by, px", 2)),
}  # fmt: skip


def table(studies: dict[str, dict[str, list[tuple[float, float]]]]) -> str:
    """The Markdown text."""
    count = max(len(next(iter(found.values()))) for found in studies.values())
    lines = ["# Networks for pictures as linear systems", "",
             f"y = F x + r of the shipped networks on {count} photographs that no training read, at 64x64 pixels of "
             f"the input; {PLACES} rows a photograph; singular pictures of {WITH_SINGULAR} photographs. 95 % bootstrap "
             "intervals over photographs. Random: weights drawn anew for each photograph. What each column means "
             f"stands in the script. Made by `{COMMAND}`."]  # fmt: skip
    for title, columns in TABLES.items():
        lines += ["", f"## {title}", "", "| network | " + " | ".join(column for _, column, _ in columns) + " |",
                  "| --- |" + " --- |" * len(columns)]  # fmt: skip
        for name, found in studies.items():
            cells = [cell(found.get(measure), digits) for measure, _, digits in columns]
            if any(one != "-" for one in cells):
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


SEEN = """
## What is seen

Of the shipped weights, by the columns above. Super-resolution: a row is bicubic enlarging, which keeps levels, plus a
localised part without mean that passes a band; this part, not the row, is wavelet-like, except that it does not follow
the edge's direction. The leading singular pictures have no mean, fill a hundredth of the picture or less and have the
finest frequencies: wavelet-like, where bicubic enlarging has sinusoids as large as the picture and random weights
patches that fill a fifth. Random weights give rows of little mean too, so that alone says nothing; size and level do.
Denoiser: the rows average along the edges (low pass, not wavelets); its leading singular pictures are localised and
without mean, but nearly as broad in frequency as white noise. Offset: small in sum, needed for the answer (in
super-resolution F x alone is worse than bicubic enlarging); there it goes with what keeps the level of flat places.
Copied against made: all three copy from within a pixel, the denoiser averages besides (its weights stay centred), and
none makes a template: the denoiser's offset runs against the picture's detail, it takes away.
"""


def cell(parts: list[tuple[float, float]] | None, digits: int) -> str:
    """Mean and interval."""
    if not parts or not all(math.isfinite(value) for pair in parts for value in pair):
        return "-"
    share, low, high = ratio(parts)
    return f"{share:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Read the shipped networks for pictures as linear systems.")
    parser.add_argument("--images", type=Path, default=Path("../shared/images"), help="folder of the photographs")
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    parser.add_argument("--smoke", action="store_true", help="scikit-image's pictures, few places")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    args = arguments()
    torch.set_num_threads(1)
    if not args.smoke and not args.images.is_dir():
        raise SystemExit(f"--images must be a folder of photographs; got {args.images}. Name that folder.")
    places, singular = (8, 1) if args.smoke else (PLACES, WITH_SINGULAR)
    studies: dict[str, Any] = {}
    for name, net in NETS.items():
        trained = load(f"xai:{name}", device="cpu")
        which: dict[str, Callable[[int], Model]] = {
            f"`xai:{name}`": lambda _, trained=trained: trained,  # type: ignore[misc]  # a default binds it
            f"`xai:{name}`, random": lambda seed, name=name: load(f"xai:{name}", device="cpu", weights="random",
                                                                   seed=seed)}  # type: ignore[misc]  # fmt: skip
        if net.scale > 1:
            fixed = Model(Bicubic(net.scale).eval(), mean=(0.0,), std=(1.0,), size=SIDE)
            which[f"bicubic x{net.scale}"] = lambda _, fixed=fixed: fixed  # type: ignore[misc]
        for title, model in which.items():
            pictures = (one for s in SAMPLES[:2] for one in sample(s)) if args.smoke else native(args.images)
            studies[title] = study(name, model, pictures, places, singular, "random" not in title)
            print(f"{title}: done", flush=True)
    text = table(studies)
    print(text)
    if args.table and not args.smoke:
        args.table.write_text(text + SEEN, encoding="utf-8")


if __name__ == "__main__":
    main()
