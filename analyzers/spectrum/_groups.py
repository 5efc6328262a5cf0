"""One or two groups of pictures, read one by one at a common shape, with a count of what was found and left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from xai import spectrum
from xai.errors import XaiError, error
from xai.images import Image, Images
from xai.panels import Column, Table
from xai.subject import Subject

Array = npt.NDArray[Any]
LEAST = 8  # pixels a side: below it there are no rings to speak of
LARGEST = 1024  # pixels a side of a cut: beyond it more pixels say little more about the tail
HELD = 0.05  # share of a group's pictures that may be smaller than the cut
GROUPED = ("auto", "source", "label", "none")


@dataclass(frozen=True)
class Group:
    """Pictures that are looked at together: its name, their places in the collection, and what was met among them."""

    name: str
    members: tuple[int, ...]
    met: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Groups:
    """One group or two, and the common shape (h, w): whole pictures where all have it, else a square cut from
    the middle of each, on the grid of 8 pixels (`cut`)."""

    groups: tuple[Group, ...]
    shape: tuple[int, int]
    cut: bool

    def pictures(self, images: Images, group: Group, most: int | None = None) -> Iterator[Image]:
        """The usable pictures of a group, cut to the shape, loaded one at a time; of more than `most` evenly spaced
        ones. Counts what it meets. Raises XaiError at the end where none was usable."""
        used = 0
        for i in spaced(group.members, most):
            try:
                image = images[i]
            except XaiError:
                group.met["unreadable"] += 1
                continue
            made = self._cut(image, group.met)
            if made is not None:
                used += 1
                yield made
        if not used:
            raise error(f"the pictures of {group.name}", f"such that one has {self.shape[0]} x {self.shape[1]} pixels "
                        "that vary", _told(group.met), "Name larger pictures, or a smaller size")

    def _cut(self, image: Image, met: Counter[str]) -> Image | None:
        (h, w), (height, width) = image.size, self.shape
        if h < height or w < width:
            met["too small"] += 1
            return None
        y, x = (h - height) // 16 * 8, (w - width) // 16 * 8  # whole JPEG blocks: grids keep their place
        pixels = image.pixels[:, y : y + height, x : x + width]
        if not np.isfinite(pixels).all():
            met["not finite"] += 1
            return None
        if (pixels == pixels[:, :1, :1]).all():
            met["constant"] += 1
            return None
        met["used"] += 1
        met[{1: "grey", 3: "colour"}.get(len(pixels), "other channels")] += 1
        met["alpha"] += image.alpha
        met[{"uint8": "8 bits", "uint16": "16 bits"}.get(pixels.dtype.name, "float")] += 1
        return image if (h, w) == self.shape else Image.of(image.name, np.ascontiguousarray(pixels), label=image.label)

    def counts(self) -> Table:
        """What each group holds and what of it was left out."""
        what = ("used", "unreadable", "too small", "constant", "not finite", "grey", "colour", "other channels",
                "alpha", "8 bits", "16 bits", "float")
        h, w = self.shape
        how = (f"Cut to {h} x {w} pixels from the middle of each, never resized: resizing changes the spectrum"
               if self.cut else f"Whole pictures of {h} x {w} pixels")
        return Table(key="counts", title="What was read", columns=(Column("group"), *map(Column, what)),
                     rows=tuple((g.name, *(g.met[one] for one in what)) for g in self.groups),
                     note=f"{how}. Transparent pixels were put over white on reading. Files that no picture came of "
                          "are named at the top of the page and stand in no group, but for those that a call from "
                          "Python left in (unreadable).")


def spaced(members: Sequence[int], most: int | None) -> list[int]:
    """At most so many of them, evenly spaced, in order."""
    if most is None or len(members) <= most:
        return list(members)
    return [members[i * len(members) // most] for i in range(most)]


def grouped(subject: Subject, by: str, size: int, name: str) -> Groups:
    """The groups of a subject's pictures and their common shape. by: source (the paths that were named), label (their
    classes), none, or auto: two sources, else two labels, else one group. size: of the square cut, 0: found by
    reading the sizes. Raises XaiError where there are no pictures, or not two groups where they are asked for."""
    images = subject.images
    if images is None or not len(images):
        raise error(f"the pictures for {name}", "given", "none", "Name a folder or a data set with --data")
    groups = _groups(images, by, name)
    if size:
        return Groups(groups, (size, size), True)
    return Groups(groups, *_shape(images, groups))


def _groups(images: Images, by: str, name: str) -> tuple[Group, ...]:
    everything = (Group("all", tuple(range(len(images)))),)
    keys: dict[str, tuple[Any, ...]] = {"source": images.sources, "label": _labels(images)}
    for kind in ("source", "label") if by == "auto" else (by,) if by != "none" else ():
        found = list(dict.fromkeys(keys[kind]))
        if len(found) == 2 and None not in found and "" not in found:
            names = _short([str(one) for one in found])
            return tuple(Group(names[k], tuple(i for i, key in enumerate(keys[kind]) if key == one))
                         for k, one in enumerate(found))
        if by == kind:
            raise error(f"{name}.groups", f"{by} only where the pictures have two of them", len(found),
                        "Name two folders, or leave it out")
    return everything


def _labels(images: Images) -> tuple[Any, ...]:
    names = images.label_names
    return tuple(names[one] if names and isinstance(one, int) and one < len(names) else one for one in images.labels)


def _short(paths: list[str]) -> list[str]:
    """The last part of each path where that tells them apart."""
    last = [one.rstrip("/").rpartition("/")[2] for one in paths]
    return last if all(last) and len(set(last)) == len(last) else paths


def _shape(images: Images, groups: tuple[Group, ...]) -> tuple[tuple[int, int], bool]:
    """The shape of all where that is small enough, or the side of a square that all but a twentieth of each group hold:
    one reading of all."""
    shapes: set[tuple[int, int]] = set()
    smallest = []
    for group in groups:
        counts = np.zeros(LARGEST + 1, np.int64)  # by shorter side: its size does not grow with the folder
        for i in group.members:
            try:
                size = images[i].size
            except XaiError:
                continue
            if len(shapes) < 2 and min(size) >= LEAST:
                shapes.add(size)
            counts[min(*size, LARGEST)] += 1
        counts[:LEAST] = 0
        if not counts.sum():
            raise error(f"the pictures of {group.name}", f"such that one can be read and has {LEAST} pixels a side",
                        "none such", "Name others")
        smallest.append(int(np.searchsorted(counts.cumsum() / counts.sum(), HELD, side="right")))
    if len(shapes) == 1 and max(next(iter(shapes))) <= LARGEST:
        return shapes.pop(), False
    return (min(smallest), min(smallest)), True


def _told(met: Counter[str]) -> str:
    return ", ".join(f"{what}: {met[what]}" for what in ("unreadable", "too small", "constant", "not finite")
                     if met[what]) or "none"


def weights(pixels: Array) -> tuple[float, ...]:
    """With which channels that are rounded each by itself make the grey (see `xai.spectrum.grey`): three equal ones are
    rounded as one."""
    if len(pixels) > 1 and (pixels[1:] == pixels[:1]).all():
        return (1.0,)
    return spectrum.LUMA if len(pixels) == 3 else (1 / len(pixels),) * len(pixels)
