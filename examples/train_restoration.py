"""Train a shipped network that makes pictures larger or takes noise off them, and write its weights and card.

Run from the root of the checkout, once for each of `espcn-x2`, `espcn-x3` and `denoiser`:

    python examples/train_restoration.py --net espcn-x2 --data ../shared/data --out restoration-out

It reads `tinyimagenet20_train.parquet` (10,000 photographs of 64x64 pixels), holds out 500 drawn by the seed, trains on
the other 9,500 and writes NET.safetensors (float16), NET.json (the card) and NET.csv (the history) to `--out`. The
validation photographs are not read here: `evaluate_restoration.py` does that. `--smoke` takes a few steps on tiles of
scikit-image's pictures where the data is absent. On one kind of machine a seed gives one network.

Super-resolution: the small picture is the photograph reduced by Pillow's bicubic filter, which is antialiased, in 8
bits; x3 takes 63x63 pixels. Denoising: white Gaussian noise of standard deviation 25/255 in each channel, clipped to
[0, 1] as any picture is. Loss: mean squared error. Adam (Kingma and Ba 2015, arXiv:1412.6980), a linear rise and half a
cosine down to zero; mirrored and turned pictures; bfloat16 in the first part where the CPU has it, float32 in the last.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a shared machine

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train_photo20 import TERMS, load, multiply_adds

from xai.zoo.nets.denoiser import denoiser
from xai.zoo.nets.espcn import espcn_x2, espcn_x3

SIZE = 64
LEVEL = 25 / 255
COMMERCIAL = (
    "Take these weights as meant for non-commercial research and education too. Whether the terms of training data bind"
    " the weights is not settled in law. For commercial use train the same architecture, whose code is under the"
    " project's licence, on photographs licensed for it: examples/train_restoration.py needs only a Parquet file of"
    " them."
)


@dataclass(frozen=True)
class Net:
    """A network to train: scale 1 is the denoiser."""

    name: str
    factory: str
    build: Callable[[], nn.Module]
    scale: int
    steps: int
    summary: str
    structure: str


_SUB_PIXEL = "5x5, 3x3 and 3x3 convolutions with 64, 32 and {} channels and ReLU between, then sub-pixel shuffle"
NETS = {net.name: net for net in (
    Net("espcn-x2", "xai.zoo.nets.espcn:espcn_x2", espcn_x2, 2, 30_000,
        "Sub-pixel convolutional network that makes a picture twice as large.", _SUB_PIXEL.format(12)),
    Net("espcn-x3", "xai.zoo.nets.espcn:espcn_x3", espcn_x3, 3, 40_000,
        "Sub-pixel convolutional network that makes a picture three times as large.", _SUB_PIXEL.format(27)),
    Net("denoiser", "xai.zoo.nets.denoiser:denoiser", denoiser, 1, 15_000,
        "Small residual network that takes Gaussian noise of standard deviation 25/255 off a picture.",
        "seven 3x3 convolutions of 32 channels with ReLU between, whose output is subtracted from the picture"),
)}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Every number the training depends on; the card repeats them."""

    steps: int
    seed: int = 5
    batch: int = 16
    crop: int = 40  # of the denoiser, pixels
    peak_rate: float = 1.5e-3
    warm_up: float = 0.02
    float32_from: float = 0.8
    held_out: int = 500


# Pictures: (n, 3, h, w) uint8, or float32 in [0, 1]


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """Pictures (n, 3, h, w) uint8 at another size by Pillow's bicubic filter, antialiased where it reduces."""
    import numpy
    from PIL import Image

    made = [Image.fromarray(one.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC)
            for one in pixels]  # fmt: skip
    return torch.from_numpy(numpy.stack([numpy.asarray(one) for one in made])).permute(0, 3, 1, 2).contiguous()


def noisy(clean: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures in [0, 1] with white Gaussian noise, clipped to [0, 1]."""
    return (clean + LEVEL * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


def spoilt(pixels: Tensor, scale: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(what the network is given, what it should give), in [0, 1], of uint8 pictures cut to a multiple of the scale."""
    h, w = (side - side % scale for side in pixels.shape[2:])
    pixels = pixels[:, :, :h, :w]
    if scale == 1:
        return noisy(pixels / 255, generator), pixels / 255
    return resized(pixels, h // scale, w // scale) / 255, pixels / 255


def plain(given: Tensor, scale: int) -> Tensor:
    """What stands against the network: the small picture enlarged by Pillow's bicubic filter, or the noisy one."""
    if scale == 1:
        return given
    return resized((given * 255).round().to(torch.uint8), *(side * scale for side in given.shape[2:])) / 255


def psnr(made: Tensor, true: Tensor, border: int, luma: bool = False) -> Tensor:
    """Peak signal-to-noise ratio in dB of each of (n, 3, h, w) in [0, 1], clipped and rounded to 8 bits first, without
    `border` pixels at each side; of all three channels, or of the luma (BT.601)."""
    made, true = ((value.clamp(0, 1) * 255).round() / 255 for value in (made, true))
    wrong = (made - true)[:, :, border : made.shape[2] - border, border : made.shape[3] - border].double()
    if luma:
        wrong = (wrong * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)).sum(1, keepdim=True)
    return -10 * wrong.square().mean((1, 2, 3)).clamp_min(1e-12).log10()


def tiles() -> Tensor:
    """Tiles (n, 3, 64, 64) of scikit-image's pictures, so that `--smoke` runs where the data is absent."""
    import skimage.data

    pictures = [torch.from_numpy(getattr(skimage.data, name)()) for name in ("astronaut", "coffee", "chelsea")]
    cut = [one.unfold(0, SIZE, SIZE).unfold(1, SIZE, SIZE).flatten(0, 1) for one in pictures]
    return torch.cat(cut).contiguous()


# Training


@dataclass
class Run:
    """A training run and what stays fixed in it."""

    net: Net
    recipe: Recipe
    given: Tensor
    wanted: Tensor
    model: nn.Module
    optimizer: torch.optim.Adam
    bfloat16: bool

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures drawn at random, all mirrored and turned the same way; the denoiser's cut out and noisy anew."""
        index = torch.randint(len(self.wanted), (self.recipe.batch,), generator=generator)
        across, down, turned, top, left = torch.randint(1 << 16, (5,), generator=generator).tolist()
        if self.net.scale == 1:
            side, room = self.recipe.crop, SIZE - self.recipe.crop + 1
            top, left = top % room, left % room
            clean = self.wanted[index, :, top : top + side, left : left + side] / 255
            pair = [noisy(clean, generator), clean]
        else:
            pair = [self.given[index] / 255, self.wanted[index] / 255]
        axes = [axis for axis, mirrored in ((3, across % 2), (2, down % 2)) if mirrored]
        pair = [value.flip(axes) for value in pair]
        pair = [value.transpose(2, 3) if turned % 2 else value for value in pair]
        return pair[0].contiguous(memory_format=torch.channels_last), pair[1]

    def step(self, number: int, generator: torch.Generator) -> float:
        """One step of the optimiser; returns the loss."""
        progress = number / self.recipe.steps
        rising = min(1.0, progress / self.recipe.warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.peak_rate * rising * 0.5 * (1 + math.cos(math.pi * progress))
        given, wanted = self.batch(generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16 and progress < self.recipe.float32_from):
            made = self.model(given)
        loss = functional.mse_loss(made.float(), wanted)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return float(loss.detach())


@torch.no_grad()
def restored(model: nn.Module, given: Tensor) -> Tensor:
    """What the network makes of pictures in [0, 1]."""
    return torch.cat([model(given[i : i + 100]) for i in range(0, len(given), 100)])


def start(net: Net, pixels: Tensor, recipe: Recipe, bfloat16: bool) -> Run:
    """Seed everything, make the small pictures, build network and optimiser."""
    torch.manual_seed(recipe.seed)
    side = SIZE - SIZE % net.scale
    wanted = pixels[:, :, :side, :side].contiguous()
    given = resized(wanted, side // net.scale, side // net.scale) if net.scale > 1 else wanted
    model = net.build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # no stub
    return Run(net, recipe, given, wanted, model, torch.optim.Adam(model.parameters(), lr=recipe.peak_rate), bfloat16)


def train(run: Run, held_out: tuple[Tensor, Tensor], out: Path) -> dict[str, float]:
    """Take all steps, log 24 times to the history and the terminal; returns the minutes it took."""
    wall, cpu, row, losses = time.perf_counter(), time.process_time(), [0.0, 0.0], []
    generator = torch.Generator().manual_seed(run.recipe.seed)
    every = max(1, run.recipe.steps // 24)
    with (out / f"{run.net.name}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", "loss", "held_out_psnr", "wall_seconds", "cpu_seconds"])
        for number in range(1, run.recipe.steps + 1):
            losses.append(run.step(number, generator))
            if number % every and number < run.recipe.steps:
                continue
            score = float(psnr(restored(run.model, held_out[0]), held_out[1], run.net.scale).mean())
            row = [round(time.perf_counter() - wall, 1), round(time.process_time() - cpu, 1)]
            loss = sum(losses) / len(losses)
            table.writerow([number, f"{loss:.6f}", round(score, 3), *row])
            file.flush()
            print(f"{run.net.name} step {number} loss {loss:.6f} held-out {score:.3f} dB {row[0]} s", flush=True)
            losses.clear()
    return {"wall_minutes": round(row[0] / 60, 1), "cpu_minutes": round(row[1] / 60, 1)}


def describe(run: Run) -> dict[str, Any]:
    """The part of the card that says what the network is and how a picture becomes its input."""
    scale = run.net.scale
    return {
        "name": run.net.name,
        "summary": run.net.summary,
        "architecture": run.net.factory,
        "structure": run.net.structure,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "multiply_adds": multiply_adds(run.model),
        "input_size": [SIZE, SIZE],
        "output_size": [SIZE * scale, SIZE * scale],
        "any_size": "fully convolutional: ?size=HEIGHTxWIDTH takes any other",
        "colour": "RGB, 0 to 1, neither shifted nor scaled; so is the output, which may leave the range a little",
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "resize": {"short_side": SIZE, "centre_crop": [SIZE, SIZE], "interpolation": "bicubic, antialiased"},
        "labels": [],
    }


def account(run: Run, minutes: dict[str, float], held_out: dict[str, Any]) -> dict[str, Any]:
    """The part of the card that says where the weights come from."""
    task = (f"white Gaussian noise of standard deviation 25/255 ({LEVEL:.4f}) in each channel, clipped to [0, 1]"
            if run.net.scale == 1 else "reduced by Pillow's bicubic filter (antialiased), in 8 bits")  # fmt: skip
    return {
        "data": {
            "name": "Tiny ImageNet (Stanford CS231N course challenge): 20 of its 200 classes, 500 a class, 64x64",
            "origin": "ImageNet (ILSVRC), Russakovsky et al. 2015, arXiv:1409.0575",
            "input": task,
            "terms": TERMS,
            "commercial_use": COMMERCIAL,
        },
        "recipe": asdict(run.recipe),
        "seed": run.recipe.seed,
        "seeds_trained": 1,
        "command": f"python examples/train_restoration.py --net {run.net.name} --data ../shared/data"
                   " --out restoration-out",
        "trained_on": len(run.wanted),
        "held_out": held_out,
        "training": {
            **minutes,
            "machine": "1 of 2 CPU cores, others at work on them",
            "precision": f"bfloat16 autocast for the first {run.recipe.float32_from:.0%} of the steps, then float32"
                         if run.bfloat16 else "float32",
            "torch": torch.__version__.split("+")[0],
        },
        "validation": None,
    }  # fmt: skip


def write(run: Run, held_out: tuple[Tensor, Tensor], minutes: dict[str, float], out: Path) -> None:
    """Write float16 safetensors and the card; the PSNR is that of the file."""
    from safetensors.torch import save_file

    target = out / f"{run.net.name}.safetensors"
    state = {name: value.half().contiguous() for name, value in run.model.state_dict().items()}
    save_file(state, target)
    run.model.load_state_dict(state)
    border = run.net.scale
    scores = [float(psnr(made, held_out[1], border).mean())
              for made in (restored(run.model, held_out[0]), plain(held_out[0], border))]  # fmt: skip
    figures = {
        "psnr": round(scores[0], 2),
        "bicubic" if border > 1 else "noisy": round(scores[1], 2),
        "unit": f"dB, RGB, without {border} pixel(s) at each side",
        "n": len(held_out[0]),
        "photographs": "drawn by the seed; the recipe was chosen on them",
    }
    data = target.read_bytes()
    file = {"file": target.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "dtype": "float16"}
    card = {**describe(run), "weights": file, **account(run, minutes, figures)}
    (out / f"{run.net.name}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(f"held-out PSNR of {target}: {scores[0]:.2f} dB against {scores[1]:.2f}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a network that enlarges pictures or takes noise off them.")
    parser.add_argument("--net", choices=list(NETS), default="espcn-x2")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the Parquet files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; nothing else is written")
    parser.add_argument("--steps", type=int, help="default: what the shipped network took")
    precision = "of the first part; auto = bfloat16 where the CPU computes in it, else float32"
    parser.add_argument("--precision", choices=["auto", "bfloat16", "float32"], default="auto", help=precision)
    parser.add_argument("--smoke", action="store_true", help="a run of seconds on a few pictures, to see that it works")
    return parser.parse_args()


def main() -> None:
    """Load, split, train, write."""
    args = arguments()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_flush_denormal(True)
    recipe, path = Recipe(args.steps or NETS[args.net].steps), args.data / "tinyimagenet20_train.parquet"
    if not path.is_file() and not args.smoke:
        raise SystemExit(f"--data must be a folder that holds {path.name}; got {args.data}. Name that folder.")
    pixels = tiles() if args.smoke else load(path).pixels
    if args.smoke:
        recipe = replace(recipe, steps=24, held_out=8)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(recipe.seed))
    held_out = spoilt(pixels[order[: recipe.held_out]], NETS[args.net].scale, torch.Generator().manual_seed(0))
    bfloat16 = args.precision == "bfloat16" or (args.precision == "auto" and torch.cpu._is_avx512_bf16_supported())
    args.out.mkdir(parents=True, exist_ok=True)
    run = start(NETS[args.net], pixels[order[recipe.held_out :]], recipe, bfloat16)
    write(run, held_out, train(run, held_out, args.out), args.out)


if __name__ == "__main__":
    main()
