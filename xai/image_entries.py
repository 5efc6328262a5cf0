"""What a source of pictures lists: `Raw` (one read picture with what is known of it), `Entry` (how to read one),
`Listing` (entries in order)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from xai.concept_maps import ConceptMaps
from xai.errors import XaiError
from xai.image_arrays import Array, is_tensor

Label = int | str | None


@dataclass(frozen=True)
class Raw:
    """What reading one entry gives: pixels (C, h, w) and, where the source knows them, label, boxes and mask.

    `boxes` (k, 4) float32 x0, y0, x1, y1, right and lower edges exclusive; `box_labels` the class of each; `difficult`
    (k,) whether a box is one that a benchmark does not count; `mask` (h, w) bool, the union of all objects meant;
    `concepts` which colours, parts, ... it shows and where; `alpha` whether its file stores transparency.
    """

    pixels: Array
    label: Label = None
    boxes: npt.NDArray[np.float32] | None = None
    mask: npt.NDArray[np.bool_] | None = None
    box_labels: tuple[int | str, ...] | None = None
    difficult: npt.NDArray[np.bool_] | None = None
    concepts: ConceptMaps | None = None
    alpha: bool = False


@dataclass(frozen=True)
class Entry:
    """One picture that can be read: its name, its label where that is known beforehand, and how to read it; `source`:
    which of several named sources it is from ("" where there is one)."""

    name: str
    read: Callable[[], Raw]
    label: Label = None
    normalised: bool = False
    source: str = ""


@dataclass(frozen=True)
class Listing:
    """Entries in order, with the class names where the source has them."""

    entries: tuple[Entry, ...]
    label_names: tuple[str, ...] | None = None


def plain_label(label: Any) -> Label:
    """An int or str from Python, numpy or torch; None for everything that is no class (a vector, a mask, a mapping)."""
    if isinstance(label, str):
        return str(label)
    if isinstance(label, int | np.integer):
        return int(label)
    if (is_tensor(label) or isinstance(label, np.ndarray)) and label.ndim == 0:
        return plain_label(label.item())
    return None


def broken(name: str, reason: XaiError, label: Label = None) -> Entry:
    """An entry that tells its reason when it is read: one bad picture must not hide the others of a list."""
    return Entry(name, partial(_fail, str(reason)), label)


def _fail(sentence: str) -> Raw:
    raise XaiError(sentence)


def joined(parts: Sequence[Listing]) -> Listing:
    """One after the other; class names stay where all parts agree on them."""
    names = {p.label_names for p in parts}
    return Listing(tuple(e for p in parts for e in p.entries), names.pop() if len(names) == 1 else None)
