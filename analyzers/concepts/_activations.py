"""A layer's activations of many pictures, in any order of a collection, and pictures of concepts side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai.batch import Batch
from xai.errors import XaiError, error
from xai.images import Images
from xai.model import Model
from xai.panels import Picture
from xai.streaming import Left
from xai.subject import Subject

READ = 32  # pictures that are read at a time
TILE, GAP = 96, 8


def in_order(subject: Subject, images: Images, order: Sequence[int], left: Left) -> Iterator[Batch]:
    """Batches of the pictures with these numbers; `left` gets those that cannot be used, with the reason."""
    model = subject.one_model()
    for first in range(0, len(order), READ):
        read = []
        for i in order[first : first + READ]:
            try:
                read.append(images[i])
            except XaiError as problem:
                left.add(images.names[i], str(problem))
        yield from model.prepare(Images.of(read, images.label_names), seed=subject.seed,
                                 memory_bytes=subject.memory_bytes, bad=left.add)


def numbered_batches(subject: Subject, images: Images, left: Left, most: int | None = None
                     ) -> Iterator[tuple[Batch, list[int]]]:
    """Batches of the pictures that can be used, of these the first `most`, and their numbers; `left` gets the others
    with the reason."""
    place = done = 0
    for batch in subject.one_model().prepare(images, seed=subject.seed, memory_bytes=subject.memory_bytes,
                                             bad=left.add):
        numbers = []
        for image in batch.images:
            while images.names[place] != image.name:
                place += 1
            numbers.append(place)
            place += 1
        if most is not None and done + len(batch) > most:
            batch, numbers = batch.choose(range(most - done)), numbers[: most - done]
        done += len(batch)
        yield batch, numbers
        if done == most:
            return


def flat(maps: Tensor, pooling: str, gradient: bool = False) -> Tensor:
    """(n, D) of maps (n, K, h, w), on the CPU: as they are, or the mean over places (of a gradient the sum, which is
    the gradient for a change of that mean that is the same everywhere)."""
    if pooling == "mean":
        maps = maps.sum((2, 3)) if gradient else maps.mean((2, 3))
    return maps.flatten(1).float().cpu()


def need_finite(values: Tensor, what: str, model: Model) -> Tensor:
    """The values. Raises XaiError where one is not finite."""
    if not bool(values.isfinite().all()):
        raise error(what, "finite numbers", f"NaN or infinity from {model.spec}", "Take other weights, or an earlier "
                    "layer")
    return values


def side_by_side(pictures: Sequence[np.ndarray[Any, np.dtype[Any]]], **panel: Any) -> Picture:
    """A panel of pictures (h, w, 3) uint8 in a row, each as large as a tile, the nearest pixel each."""
    pixels = np.full((TILE, max(1, len(pictures)) * (TILE + GAP) - GAP, 3), 255, dtype=np.uint8)
    for i, one in enumerate(pictures):
        down, over = (np.arange(TILE) * side // TILE for side in one.shape[:2])
        pixels[:, i * (TILE + GAP) : i * (TILE + GAP) + TILE] = one[down][:, over]
    return Picture(pixels=pixels, **panel)


def gram(one: Tensor, two: Tensor, at_once: int = 65536) -> Tensor:
    """one @ two.T in float64, some columns at a time: only those are ever held in float64."""
    total = torch.zeros(len(one), len(two), dtype=torch.float64)
    for a, b in zip(torch.split(one, at_once, 1), torch.split(two, at_once, 1), strict=True):
        total += a.double() @ b.double().T
    return total
