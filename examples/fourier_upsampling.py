"""Does a detector of generated pictures detect generation, or the last upsampling layer? A small counter-example.

Run from the root of the checkout:

    python examples/fourier_upsampling.py --table examples/tables/fourier_upsampling.md

One autoencoder makes 64 x 64 pictures. Everything up to 32 x 32 is shared; its last stage exists four times, with
another upsampling by two each: zero insertion, nearest, bilinear and sub-pixel. All are trained together, on the same
pictures, to give back the picture (squared error). Three detectors from the literature (Durall et al.: azimuthal
profile + SVM; Dzanic et al.: decay of the tail + kNN; Tan et al.: NPR map + a small network) are then trained to tell
photographs from the pictures of one of these stages and tested on all of them. If they detected generation, it would
not matter which stage they were trained on.

After Chandrasegaran, Tran, Cheung 2021, "A Closer Look at Fourier Spectrum Discrepancies for CNN-generated Images
Detection" (arXiv:2103.17195), who found with GANs of 128 x 128 faces that swapping the last upsampling removes the
spectral discrepancy and the detection. Photographs: the folder ../shared beside the checkout (Tiny ImageNet) where it
is there, else rendered scenes (`planted:`). `--smoke` does all of it in seconds with few pictures and steps.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down on a shared machine

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analyzers.spectrum import _detectors, _npr
from analyzers.spectrum._image_panels import welch
from xai import spectrum
from xai.images import Image, load_images
from xai.statistics import wilson

SIDE, WIDTH, LATENT, BATCH = 64, 16, 6, 16  # pixels; channels before the last stage and of the code
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "tinyimagenet20_train.parquet"
TAIL = 0.25
Array = np.ndarray


# --- the generator ---
class Zeros(nn.Module):
    """Zero insertion: each pixel at the top left of a 2 x 2 cell of zeros, times four to keep the mean."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(4 * x, x.new_ones(x.shape[1], 1, 1, 1), stride=2, output_padding=1,
                                  groups=x.shape[1])


def last(kind: str) -> nn.Module:
    """(n, WIDTH, 32, 32) to (n, 3, 64, 64): an upsampling and one 5 x 5 convolution, as in the published set-up."""
    smooth = nn.Conv2d(WIDTH, 3, 5, padding=2)
    if kind == "sub-pixel":
        return nn.Sequential(nn.Conv2d(WIDTH, 4 * WIDTH, 3, padding=1), nn.PixelShuffle(2), smooth)
    up = {"zero insertion": Zeros(), "nearest": nn.Upsample(scale_factor=2),
          "bilinear": nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)}[kind]
    return nn.Sequential(up, smooth)


KINDS = ("zero insertion", "nearest", "bilinear", "sub-pixel")


class Generator(nn.Module):
    """An encoder to a code of half as many numbers as the picture, a decoder, and one last stage of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, LATENT, 1))
        self.body = nn.Sequential(nn.Conv2d(LATENT, WIDTH, 3, padding=1), nn.ReLU(),
                                  nn.Conv2d(WIDTH, WIDTH - LATENT, 3, padding=1), nn.ReLU())
        self.stages = nn.ModuleList(last(kind) for kind in KINDS)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The pictures of every stage, each (n, 3, 64, 64) in [-1, 1] or a little outside."""
        code = self.code(x)
        found = torch.cat([code, self.body(code)], 1)
        return [stage(found) for stage in self.stages]


def trained(pictures: Tensor, steps: int, seed: int) -> Generator:
    """All stages on the same batches of pictures (n, 3, 64, 64) in [-1, 1], by the squared error."""
    torch.manual_seed(seed)
    made = Generator()
    adam = torch.optim.Adam(made.parameters(), 1e-3)
    slower = torch.optim.lr_scheduler.OneCycleLR(adam, 5e-3, total_steps=steps)
    for step in range(steps):
        real = pictures[torch.randint(len(pictures), (BATCH,))]
        loss = torch.stack([F.mse_loss(fake, real) for fake in made(real)])
        adam.zero_grad()
        loss.sum().backward()
        adam.step()
        slower.step()
        if step % 50 == 0:
            print(f"step {step} of {steps}: {', '.join(f'{v:.4f}' for v in loss.tolist())}", file=sys.stderr,
                  flush=True)
    return made.eval()


# --- pictures ---
@dataclass(frozen=True)
class Sets:
    """Pictures (n, 3, 64, 64) uint8: `fit` for the generator; `real`, and `source` for the generated ones, each in a
    half for training detectors and one for testing them. No picture is in two of them."""

    fit: Array
    real: tuple[Array, Array]
    source: tuple[Array, Array]
    name: str


def sets(fit: int, half: int, seed: int) -> Sets:
    """Photographs where they are there, else rendered scenes."""
    need = fit + 4 * half
    images, name = (load_images(str(SHARED)), "Tiny ImageNet photographs") if SHARED.is_file() else \
        (load_images(f"planted:{need}"), "rendered scenes")
    order = np.random.default_rng(seed).permutation(len(images))
    found: list[Array] = []
    for i in order:
        pixels = images[int(i)].pixels
        if pixels.shape[0] == 3 and min(pixels.shape[1:]) >= SIDE:
            found.append(pixels[:, :SIDE, :SIDE])
        if len(found) == need:
            break
    all_ = np.stack(found)
    parts = np.split(all_, [fit + k * half for k in range(4)])
    return Sets(parts[0], (parts[1], parts[2]), (parts[3], parts[4]), name)


def generated(made: Generator, source: Array) -> dict[str, Array]:
    """Kind -> (n, 3, 64, 64) uint8."""
    with torch.no_grad():
        parts = [made(as_input(part)) for part in np.array_split(source, max(1, len(source) // 50))]
    return {kind: np.concatenate([((part[k].clamp(-1, 1) + 1) * 127.5).round().byte().numpy() for part in parts])
            for k, kind in enumerate(KINDS)}


def as_input(pixels: Array) -> Tensor:
    """uint8 to [-1, 1]."""
    return torch.from_numpy(pixels).float() / 127.5 - 1


# --- spectra ---
@dataclass(frozen=True)
class Spectrum:
    """Of a set of pictures: each one's decay exponent (n,), dB above 0.4 cycles per pixel (n,), and of the mean power
    the comb of a grid of two in dB."""

    exponent: Array
    top: Array
    comb: float


def measured(pictures: Array) -> Spectrum:
    """Grey, Hann window."""
    on, taper = spectrum.rings(SIDE, SIDE), spectrum.window(SIDE, SIDE)
    powers = np.stack([spectrum.power(spectrum.grey(one), taper) for one in pictures])
    means = on.means(powers)
    exponents = [spectrum.decay(on.frequency, mean, on.counts, TAIL).exponent for mean in means]
    top = spectrum.decibels(means[:, on.frequency > 0.4]).mean(1)
    return Spectrum(np.array(exponents), top, spectrum.comb(powers.mean(0), 2))


def against(values: Array, real: Array) -> tuple[float, float]:
    """Difference of the means and half of its 95 % interval (Welch)."""
    difference, half, _ = welch(real.sum(), (real**2).sum(), len(real), values.sum(), (values**2).sum(), len(values))
    return float(difference), float(half)


# --- detectors ---
class Detector:
    """Trained on photographs (0) and generated pictures (1)."""

    def __init__(self, name: str, real: Array, fake: Array, seed: int) -> None:
        self.name, truth = name, np.repeat([0, 1], [len(real), len(fake)])
        if name == "npr":
            self.net = _npr.trained(torch.cat([npr_inputs(real), npr_inputs(fake)]), torch.from_numpy(truth), seed)
        else:
            self.model = _detectors.classifier(name).fit(np.concatenate([self.features(real), self.features(fake)]),
                                                         truth)

    def features(self, pictures: Array) -> Array:
        return np.stack([_detectors.FEATURES[self.name](Image.of("", one)) for one in pictures])

    def called(self, pictures: Array) -> int:
        """How many are called generated."""
        scores = _npr.scores(self.net, npr_inputs(pictures)) if self.name == "npr" else \
            _detectors.scores_of(self.model, self.features(pictures))
        return int((scores > 0).sum())


def npr_inputs(pictures: Array) -> Tensor:
    return torch.stack([_npr.network_input(_npr.npr(one), SIDE) for one in pictures])


DETECTORS = ("durall", "dzanic", "npr")


@dataclass(frozen=True)
class Row:
    """A detector and what it was trained on; how many of n photographs and of n pictures of each kind it calls
    generated."""

    detector: str
    on: str
    false: int
    hits: dict[str, int]
    n: int

    @property
    def transfers(self) -> float:
        """Mean detection of the kinds it was not trained on, over that of its own, both above the false alarms; NaN
        where it finds no more than half of its own."""
        own = (self.hits[self.on] - self.false) / self.n
        others = np.mean([(hits - self.false) / self.n for kind, hits in self.hits.items() if kind != self.on])
        return float(others / own) if own > 0.5 else float("nan")


def rows(data: Sets, train: dict[str, Array], test: dict[str, Array], seed: int) -> Iterator[Row]:
    """Every detector trained on every kind, and on two halves of the photographs as a control."""
    for name in DETECTORS:
        for kind in (*KINDS, "photographs"):
            real, fake = (data.real[0], train[kind]) if kind != "photographs" else np.array_split(data.real[0], 2)
            detector = Detector(name, real, fake, seed)
            hits = {tested: detector.called(pictures) for tested, pictures in test.items()}
            yield Row(name, kind, detector.called(data.real[1]), hits, len(data.real[1]))


# --- the table ---
def text(data: Sets, test: dict[str, Array], found: Sequence[Row], asked: argparse.Namespace, minutes: float) -> str:
    """Spectra, detections and what follows, in Markdown."""
    real = measured(data.real[1])
    n = len(data.real[1])
    lines = ["| last upsampling | PSNR, dB | decay exponent | minus photographs | power above 0.4, dB, minus "
             "photographs | comb of 2, dB |", "| --- | --- | --- | --- | --- | --- |",
             f"| (photographs) | - | {real.exponent.mean():.2f} | - | - | {real.comb:.1f} |"]
    alike = []
    for kind, pictures in test.items():
        own = measured(pictures)
        exponent, top = against(own.exponent, real.exponent), against(own.top, real.top)
        if abs(exponent[0]) <= exponent[1] and abs(top[0]) <= top[1]:
            alike.append(kind)
        error = ((pictures.astype(np.float64) - data.source[1]) / 255)
        lines.append(f"| {kind} | {-10 * np.log10((error**2).mean()):.1f} | {own.exponent.mean():.2f} | "
                     f"{exponent[0]:+.2f} ± {exponent[1]:.2f} | {top[0]:+.1f} ± {top[1]:.1f} | {own.comb:.1f} |")
    lines += ["", "| detector | trained on | photographs | " + " | ".join(test) + " | others / own |",
              "| --- " * (len(test) + 4) + "|"]
    lines += ["| " + " | ".join([row.detector, row.on, share(row.false, n), *(share(h, n) for h in row.hits.values()),
                                 f"{row.transfers:.2f}" if row.on in row.hits and row.transfers == row.transfers
                                 else "-"]) + " |" for row in found]
    return "\n".join(lines) + "\n\n" + conclusion(found, alike) + "\n\n" + about(data, asked, n, minutes) + "\n"


def share(count: int, n: int) -> str:
    low, high = wilson(count / n, n)
    return f"{100 * count / n:.0f} ({100 * low:.0f}-{100 * high:.0f})"


REVERSED = ("This is the other way round than with the paper's GANs, where zero insertion keeps the discrepancy "
            "and nearest and bilinear remove it: the squared error teaches a convolution after zeros every phase "
            "of the picture, while one after a smoothing upsampling cannot bring back what that has taken away "
            "(see PSNR). What is alike: the last stage decides what these detectors find, not that a picture is "
            "generated.")


def conclusion(found: Sequence[Row], alike: Sequence[str]) -> str:
    """What the numbers say, by fixed rules."""
    said = [f"Discrepancy: {len(alike)} of {len(KINDS)} last upsamplings leave neither the decay nor the highest "
            f"frequencies different from photographs ({', '.join(alike) or 'none'}), so that swapping it "
            f"{'can remove' if alike else 'changes but does not remove'} the discrepancy here."]
    for name in DETECTORS:
        own = [row for row in found if row.detector == name and row.on in KINDS]
        lost = [(row.on, kind) for row in own for kind, hits in row.hits.items() if kind != row.on and
                row.hits[row.on] - row.false > row.n / 2 and wilson(hits / row.n, row.n)[1] < 0.5]
        said.append(f"Detection by {name}: " + (
            f"swapping removes it for {len(lost)} of {len(own) * (len(KINDS) - 1)} pairs of training and test ("
            + "; ".join(f"{a} to {b}" for a, b in lost[:4]) + ("; ..." if len(lost) > 4 else "") + ")." if lost else
            "no swap brings it reliably below one half."))
    if "zero insertion" in alike and not {"nearest", "bilinear"} & set(alike):
        said.append(REVERSED)
    return " ".join(said)


def about(data: Sets, asked: argparse.Namespace, n: int, minutes: float) -> str:
    return (f"{data.name}, 64 x 64. Autoencoder (code of 32 x 32 x {LATENT}), {asked.steps} steps of {BATCH} of "
            f"{len(data.fit)} pictures, squared error, seed {asked.seed}. Upper table: {n} "
            f"pictures of each kind; exponent a of grey power ~ f^-a from {TAIL:g} to 0.5 cycles/pixel, differences "
            "with 95 % intervals (Welch); comb: power at multiples of 1/2 over its surroundings, 0 = none. Lower "
            "table: per cent called generated, with 95 % intervals (Wilson); detectors trained on "
            f"{len(data.real[0])} photographs and as many generated pictures, tested on {n} others of each; no picture "
            "is in two sets. photographs as training: half of them against the other half, a control. others / own: "
            "mean detection of the other kinds over that of its own where this is above one half, false alarms taken "
            "off. removes: more than half of its own are found beyond false alarms and the upper end of the "
            f"interval for the other kind is below one half. "
            "`python examples/fourier_upsampling.py --table examples/tables/fourier_upsampling.md`, "
            f"{minutes:.0f} minutes on one core that was shared.")


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=700, help="of training the generator")
    parser.add_argument("--fit", type=int, default=2000, help="pictures that the generator is trained on")
    parser.add_argument("--half", type=int, default=300, help="pictures of each set of the detectors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="also write the tables here, in Markdown")
    parser.add_argument("--smoke", action="store_true", help="few pictures and steps")
    asked = parser.parse_args(arguments)
    if asked.smoke:
        asked.steps, asked.fit, asked.half = 3, 40, 20
    started = time.monotonic()
    data = sets(asked.fit, asked.half, asked.seed)
    made = trained(as_input(data.fit), asked.steps, asked.seed)
    train, test = generated(made, data.source[0]), generated(made, data.source[1])
    found = list(rows(data, train, test, asked.seed))
    said = text(data, test, found, asked, (time.monotonic() - started) / 60)
    print(said, end="")
    if asked.table:
        asked.table.parent.mkdir(parents=True, exist_ok=True)
        asked.table.write_text(said, encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
