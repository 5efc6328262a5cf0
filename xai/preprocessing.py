"""From a picture at native size to a network's input, and the way back from the input's pixels to the picture's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai.errors import error
from xai.images import Image
from xai.outlines import boxes_mask

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_PIXELS = 50_000_000  # of a resized picture before its crop: only one far longer than wide comes near it
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what PIL's "L" uses


@dataclass(frozen=True)
class Frame:
    """Where the input lies in the original: x_original = x0 + x_input * sx, y alike (pixels; edges whole numbers)."""

    x0: float
    y0: float
    sx: float
    sy: float

    def box(self, height: int, width: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """The two corners, in the original's pixels, of an input of that size."""
        return (self.x0, self.y0), (self.x0 + width * self.sx, self.y0 + height * self.sy)

    def to_input(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (k, 4) x0, y0, x1, y1 of the original, in the input's pixels (they may reach outside it)."""
        offset, step = np.array([self.x0, self.y0] * 2), np.array([self.sx, self.sy] * 2)
        return np.asarray((boxes - offset) / step)

    def mask_to_input(self, mask: np.ndarray, height: int, width: int) -> np.ndarray:
        """A mask (h, w) bool of the original as (height, width) bool of the input: the value under each pixel's centre.

        So the mask of a box is to the pixel what `boxes_to_input` gives for the box. What is thinner than a pixel of
        the input may be lost; a mask that the crop cuts off is False everywhere.
        """
        xs, ys = (np.floor(v).astype(np.int64) for v in self._centres(height, width))
        h, w = mask.shape
        inside = ((ys >= 0) & (ys < h))[:, None] & ((xs >= 0) & (xs < w))
        return np.asarray(mask[np.ix_(ys.clip(0, h - 1), xs.clip(0, w - 1))] & inside)

    def labels_to_input(self, planes: np.ndarray, size: tuple[int, int], seen: tuple[int, int],
                        shape: tuple[int, int], outside: int) -> np.ndarray:
        """Maps of numbers (p, h, w), over the whole original of `size`, as (p, *shape) over the input of `seen` pixels:
        the value under each place's centre, `outside` beyond the original."""
        found, inside = [], []
        for axis, (start, step) in enumerate(((self.y0, self.sy), (self.x0, self.sx))):
            centres = start + (np.arange(shape[axis]) + 0.5) * seen[axis] / shape[axis] * step
            cells, count = centres * planes.shape[1 + axis] / size[axis], planes.shape[1 + axis]
            place = np.floor(cells).astype(np.int64)
            found.append(place.clip(0, count - 1))
            inside.append((place >= 0) & (place < count))
        taken = planes[:, found[0][:, None], found[1]]
        return np.where(inside[0][:, None] & inside[1], taken, outside)

    def boxes_to_input(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """The input's pixels (height, width) whose centres lie in one of the original's boxes (k, 4)."""
        return boxes_mask(boxes, *self._centres(height, width))

    def _centres(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the centres of the input's columns (width,) and rows (height,) lie in the original."""
        return self.x0 + (np.arange(width) + 0.5) * self.sx, self.y0 + (np.arange(height) + 0.5) * self.sy


@dataclass(frozen=True)
class Prepared:
    """One picture as the network takes it: `input` (C, H, W) float32, `seen` (H, W, 3) uint8, and its frame."""

    input: Tensor
    seen: np.ndarray
    frame: Frame


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its pictures: resize, crop, scale, normalise.

    size: (height, width) of the input. resize: short side in pixels before the centre crop (None: just enough to fill
    `size`). crop: "center", or "squash" (resize to `size` whatever the aspect). range: (low, high) that 0 and 1 are
    mapped to before (x - mean) / std, so mean and std are in its units. mean None: not known, and a picture that needs
    it raises XaiError.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    crop: str = "center"
    interpolation: str = "bilinear"
    range: tuple[float, float] = (0.0, 1.0)
    channels: int = 3
    reason: str = ""

    def __post_init__(self) -> None:
        if self.crop not in ("center", "squash"):
            raise error("crop", '"center" or "squash"', repr(self.crop), "Set it on the spec, e.g. ?crop=center")
        if self.interpolation not in ("bilinear", "bicubic", "nearest"):
            raise error("interpolation", '"bilinear", "bicubic" or "nearest"', repr(self.interpolation),
                        "Set it on the spec, e.g. ?interpolation=bilinear")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and len(value) == 1:
                object.__setattr__(self, name, tuple(value) * self.channels)
            elif value is not None and len(value) != self.channels:
                raise error(name, f"one number or {self.channels}, one a channel", value,
                            f"Give {self.channels} numbers")
        if self.std is not None and any(s == 0 for s in self.std):
            raise error("std", "non-zero", self.std, "Give the standard deviations the network was trained with")

    def describe(self) -> str:
        """One line for the page."""
        h, w = self.size
        short = self.short_side()
        scaled = f"short side {short}" if short else "resized until it fills"
        how = f"resized to {h}x{w}" if self.crop == "squash" else f"{scaled}, centre crop {h}x{w}"
        if self.mean is None or self.std is None:
            return f"{how} ({self.interpolation}); mean and std not known"
        numbers = "; ".join(f"{n} {', '.join(f'{v:g}' for v in vs)}"
                            for n, vs in (("mean", self.mean), ("std", self.std)))
        return f"{how} ({self.interpolation}, antialiased); range {self.range[0]:g} to {self.range[1]:g}; {numbers}"

    def short_side(self) -> int | None:
        """Short side before the crop; None where a frame that is not square is just filled."""
        square = self.size[0] == self.size[1]
        return self.resize if self.resize is not None else self.size[0] if square else None

    def __call__(self, image: Image) -> Prepared:
        """Prepare one picture; raises XaiError where its channels do not fit or the normalisation is not known."""
        if image.normalised:
            return self._as_it_is(image)
        if self.mean is None or self.std is None:
            raise error("the preprocessing of this model", "known before a picture can be shown to it",
                        "no mean and std",
                        "Add them to the spec, e.g. ?size=224&range=0-1&mean=0.485,0.456,0.406&std=0.229,0.224,0.225")
        values, frame = self._fit(_channels(_values(image.pixels, self.channels), self.channels, image.name))
        values = values / 255 if values.dtype == torch.uint8 else values
        seen = (values * 255).round().to(torch.uint8)
        low, high = self.range
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return Prepared(((values * (high - low) + low) - mean) / std, _rgb(seen), frame)

    def undo(self, inputs: Tensor) -> Tensor:
        """Inputs (..., C, H, W) back in [0, 1]; without a known normalisation each is stretched to its own range."""
        if self.mean is None or self.std is None:
            least, most = inputs.amin((-3, -2, -1), True), inputs.amax((-3, -2, -1), True)
            return (inputs - least) / (most - least).clamp_min(1e-12)
        mean, std = (inputs.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        low, high = self.range
        return (((inputs * std + mean) - low) / (high - low)).clamp(0, 1)

    def constant(self, level: float) -> Tensor:
        """The input value (C, 1, 1) of a picture that is `level` (0 black to 1 white) everywhere."""
        if self.mean is None or self.std is None:
            raise error("the preprocessing of this model", "known for a baseline in pixel units", "no mean and std",
                        "Add mean and std, or take the baseline zero")
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (level * (self.range[1] - self.range[0]) + self.range[0] - mean) / std

    def with_options(self, **options: Any) -> Preprocessing:
        """A copy with some fields replaced, for overrides on the spec."""
        return replace(self, **options)

    def _as_it_is(self, image: Image) -> Prepared:
        values = torch.from_numpy(np.array(image.pixels, dtype=np.float32))
        if values.shape[0] != self.channels:
            raise error(f"the tensor {image.name}", f"of {self.channels} channels", values.shape[0],
                        "Check the order (C, h, w)")
        return Prepared(values, _rgb((self.undo(values) * 255).round().to(torch.uint8)), Frame(0, 0, 1, 1))

    def _fit(self, values: Tensor) -> tuple[Tensor, Frame]:
        height, width = values.shape[1:]
        h, w = self.size
        if self.crop == "squash":
            return self._resized(values, h, w), Frame(0, 0, width / w, height / h)
        short = self.short_side() or 0
        # torchvision's rule: the long side is cut, not rounded, to a whole number
        new_h, new_w = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
        if new_h < h or new_w < w:  # no short side is given, or the crop is larger than the resized picture: fill it
            scale = max(h / height, w / width)
            new_h, new_w = max(h, round(height * scale)), max(w, round(width * scale))
        if new_h * new_w > MAX_PIXELS:
            got = f"{height} x {width} pixels, which would become {new_h} x {new_w} first"
            raise error("the picture", f"of a shape that can be cropped to {h} x {w}", got,
                        "Cut it first, or squeeze it with ?crop=squash on the spec")
        values = self._resized(values, new_h, new_w)
        top, left = round((new_h - h) / 2), round((new_w - w) / 2)
        sy, sx = height / new_h, width / new_w
        return values[:, top : top + h, left : left + w], Frame(left * sx, top * sy, sx, sy)

    def _resized(self, values: Tensor, height: int, width: int) -> Tensor:
        if values.shape[1:] == (height, width):
            return values
        smooth = self.interpolation != "nearest"
        out = torch.nn.functional.interpolate(values[None], (height, width),
                                              mode=self.interpolation if smooth else "nearest-exact",  # as PIL does
                                              align_corners=False if smooth else None, antialias=smooth)[0]
        return out if out.dtype == torch.uint8 else out.clamp(0, 1)


def unit(pixels: np.ndarray) -> Tensor:
    """Pixels (C, h, w) uint8, uint16 or float in [0, 1] as float32 in [0, 1]."""
    scale = {"uint8": 255.0, "uint16": 65535.0}.get(str(pixels.dtype), 1.0)
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(scale))


def _values(pixels: np.ndarray, channels: int) -> Tensor:
    """8-bit pixels as they are, to be resized in 8 bits as PIL does it for training; all others as [0, 1]."""
    if pixels.dtype == np.uint8 and (pixels.shape[0] == channels or pixels.shape[0] == 1):
        return torch.from_numpy(np.array(pixels, order="C"))  # a copy: the picture may be read-only
    return unit(pixels)


def _channels(values: Tensor, wanted: int, name: str) -> Tensor:
    got = values.shape[0]
    if got == wanted:
        return values
    if got == 1:
        return values.expand(wanted, -1, -1)
    if got == 3 and wanted == 1:
        return (values * values.new_tensor(LUMA).view(-1, 1, 1)).sum(0, keepdim=True)
    raise error(f"the picture {name}", f"of {wanted} channels, as the model takes", got,
                "Give pictures with the channels that the model was trained on")


def _rgb(values: Tensor) -> np.ndarray:
    """(C, H, W) uint8 as (H, W, 3): one or two channels are shown as grey, of more than three the first three."""
    shown = values[:3] if values.shape[0] >= 3 else values[:1].expand(3, -1, -1)
    return np.ascontiguousarray(shown.permute(1, 2, 0).numpy())
