"""What the shipped networks for pictures gain over bicubic enlarging and over the noisy picture, on photographs that
their training never read.

Run from the root of the checkout:

    python examples/evaluate_restoration.py --table examples/tables/restoration.md

The networks are loaded by `xai.load`. Photographs: the 40 of `../shared/images` at native size (their classes are none
of the training data's) and the 1,000 validation photographs of 64x64 pixels (`tinyimagenet20_val.parquet`, of the
training data's classes); and three pictures of scikit-image. Each is cut to a multiple of the scale, reduced by
Pillow's bicubic filter in 8 bits (or made noisy: standard deviation 25/255, clipped), restored, clipped, rounded to 8
bits and compared without as many pixels at each side as the scale says: peak signal-to-noise ratio over red, green and
blue together, and of the luma (BT.601, full range). The difference is paired by photograph, with the 95 % bootstrap
interval of its mean. Controls: the same network with the weights it started from; and for the denoiser, beside the
noisy picture, the Gaussian blur that is best for each photograph (standard deviations 0.4, 0.5, ... 1.5 pixels, chosen
with the true picture in hand). `--write` puts the figures into the cards; after that a run fails where they differ.
`--smoke` takes scikit-image's pictures alone and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train_restoration import NETS, Recipe, plain, psnr, spoilt

from xai.model import Model
from xai.statistics import interval
from xai.zoo import shipped
from xai.zoo.loading import load

COMMAND = "python examples/evaluate_restoration.py --table examples/tables/restoration.md"
NATIVE, SMALL = "photographs at native size", "validation photographs, 64x64"
SAMPLES = ("astronaut", "coffee", "chelsea")  # in scikit-image's own package, so no download
Groups = dict[str, Callable[[], Iterator[Tensor]]]


@dataclass(frozen=True)
class Scores:
    """PSNR (photographs, 2) in dB, RGB and luma, of what the network makes and of what stands against it."""

    made: Tensor
    against: Tensor

    def figures(self) -> dict[str, Any]:
        """Means, and the paired difference with its interval; of RGB, and the luma's difference."""
        gain = self.made - self.against
        low, high = interval(gain[:, 0])
        luma = interval(gain[:, 1])
        return {"psnr": round(float(self.made[:, 0].mean()), 2), "against": round(float(self.against[:, 0].mean()), 2),
                "gain": round(float(gain[:, 0].mean()), 3), "low": round(low, 3), "high": round(high, 3),
                "better": int((gain[:, 0] > 0).sum()), "n": len(gain),
                "luma_gain": round(float(gain[:, 1].mean()), 3), "luma_low": round(luma[0], 3),
                "luma_high": round(luma[1], 3)}  # fmt: skip


def picture(file: Any) -> Tensor:
    """A picture file as (1, 3, h, w) uint8."""
    import numpy
    from PIL import Image

    return torch.from_numpy(numpy.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None]


def native(folder: Path) -> Iterator[Tensor]:
    """The photographs of a folder, by name."""
    for file in sorted(folder.glob("*.jpg")):
        yield picture(file)


def small(file: Path) -> Iterator[Tensor]:
    """The photographs of a Parquet file, 100 at a time."""
    from train_photo20 import load as read

    pixels = read(file).pixels
    yield from (pixels[first : first + 100] for first in range(0, len(pixels), 100))


def sample(name: str) -> Iterator[Tensor]:
    """A picture of scikit-image."""
    import skimage.data

    yield torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None].contiguous()


def blurred(given: Tensor, true: Tensor) -> Tensor:
    """Of one noisy picture (1, 3, h, w) the Gaussian blur nearest to the true one."""
    best = given
    for sigma in (tenths / 10 for tenths in range(4, 16)):
        bell = (-(torch.arange(-6.0, 7.0) / sigma).square() / 2).exp()
        kernel = (bell / bell.sum()).expand(3, 1, -1)
        padded = functional.pad(given, (6, 6, 6, 6), mode="reflect")
        made = functional.conv2d(functional.conv2d(padded, kernel[:, :, None], groups=3), kernel[..., None], groups=3)
        best = made if psnr(made, true, 1) > psnr(best, true, 1) else best
    return best


@torch.no_grad()
def measure(model: Model, scale: int, pictures: Iterator[Tensor], blur: bool = False, seed: int = 0) -> Scores:
    """Spoil each picture, restore it, compare with what is plain, or with the best blur; the noise is drawn from the
    seed, in the order of the pictures."""
    generator = torch.Generator().manual_seed(seed)
    made, against = list[Tensor](), list[Tensor]()
    for pixels in pictures:
        given, true = spoilt(pixels, scale, generator)
        for kept, answer in ((made, model(given)), (against, blurred(given, true) if blur else plain(given, scale))):
            kept.append(torch.stack([psnr(answer, true, scale, luma) for luma in (False, True)], 1))
    return Scores(torch.cat(made), torch.cat(against))


def line(name: str, what: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    many = found["n"] > 1
    gain, luma = (f"{found[key]:+.2f}" + (f" ({found[low]:+.2f} to {found[high]:+.2f})" if many else "")
                  for key, low, high in (("gain", "low", "high"), ("luma_gain", "luma_low", "luma_high")))  # fmt: skip
    cells = (name, what, str(found["n"]), f"{found['against']:.2f}", f"{found['psnr']:.2f}", gain, luma,
             f"{found['better']} of {found['n']}")  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def compare(name: str, found: dict[str, dict[str, Any]], write: bool) -> None:
    """Put the figures into the card, or see that they are the card's."""
    path = shipped.FOLDER / f"{name}.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    against = "bicubic" if NETS[name].scale > 1 else "the noisy picture"
    told = {**found[NATIVE], "against_what": against, "unit": "dB, RGB", "interval": "95 % bootstrap",
            "photographs": "40 at native size, of none of the training data's classes", "small": found[SMALL],
            "pictures": {key: {k: found[key][k] for k in ("psnr", "against", "gain")} for key in SAMPLES},
            "command": COMMAND}  # fmt: skip
    if write:
        path.write_text(json.dumps({**card, "validation": told}, indent=2) + "\n", encoding="utf-8")
    elif card["validation"] and abs(card["validation"]["gain"] - told["gain"]) > 0.02:
        stated = card["validation"]["gain"]
        raise SystemExit(f"the gain of {name} must be the card's {stated}; got {told['gain']}. Train or evaluate anew.")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Evaluate the shipped networks for pictures.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the Parquet files")
    parser.add_argument("--images", type=Path, default=Path("../shared/images"), help="folder of the photographs")
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    parser.add_argument("--write", action="store_true", help="put the figures into the cards")
    parser.add_argument("--smoke", action="store_true", help="scikit-image's pictures alone; nothing is written")
    return parser.parse_args()


def main() -> None:
    """Measure, print; write or compare."""
    args = arguments()
    torch.set_num_threads(1)
    groups: Groups = {name: lambda name=name: sample(name) for name in SAMPLES}  # type: ignore[misc]  # a default binds
    if not args.smoke:
        for path in (args.images, args.data / "tinyimagenet20_val.parquet"):
            if not path.exists():
                raise SystemExit(f"--data and --images must hold the photographs; got no {path}. Name the folders.")
        groups = {NATIVE: lambda: native(args.images),
                  SMALL: lambda: small(args.data / "tinyimagenet20_val.parquet"), **groups}  # fmt: skip
    rows = []
    for name, net in NETS.items():
        model = load(f"xai:{name}", device="cpu")
        found = {what: measure(model, net.scale, make()).figures() for what, make in groups.items()}
        rows += [line(f"`xai:{name}`", what, figures) for what, figures in found.items()]
        control = load(f"xai:{name}", device="cpu", weights="random", seed=Recipe.seed)
        what = SAMPLES[0] if args.smoke else NATIVE
        rows.append(line(f"`xai:{name}`, untrained", what, measure(control, net.scale, groups[what]()).figures()))
        if net.scale == 1:
            blur = measure(model, 1, groups[what](), blur=True).figures()
            rows.append(line(f"`xai:{name}`, against the best blur", what, blur))
        if not args.smoke:
            compare(name, found, args.write)
    head = ["# Restored pictures", "",
            "Peak signal-to-noise ratio (dB, clipped, 8 bits, borders of as many pixels as the scale left out) of the "
            "shipped networks beside bicubic enlarging (Pillow; the small picture is Pillow's bicubic, antialiased) "
            "and beside the noisy picture (standard deviation 25/255, clipped). Differences are paired by photograph, "
            "95 % bootstrap intervals over photographs; none of them was read in training. Untrained: the weights that "
            f"training started from. Made by `{COMMAND}`.", "",
            "| network | pictures | N | against, RGB | network, RGB | difference, RGB | difference, luma | better |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    text = "\n".join([*head, *rows]) + "\n"
    print(text)
    if args.table and not args.smoke:
        args.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
