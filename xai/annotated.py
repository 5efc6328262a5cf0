"""One annotated picture: where its file lies, which objects it has, and how they lie on the picture as it is shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from xai.errors import XaiError, error
from xai.image_entries import Entry, Label, Listing, Raw, broken
from xai.image_files import orientation
from xai.outlines import Mask, as_boxes, is_number, joined_masks, turned_boxes, turned_mask

Reader = Callable[[Path, str], Raw]  # how one picture file is read
Size = tuple[int, int]


@dataclass(frozen=True)
class Thing:
    """One object: x0, y0, x1, y1 (exclusive) if known, whether a benchmark leaves it out, and how its mask is made for
    a grid of (h, w)."""

    box: tuple[float, ...] | None
    difficult: bool = False
    mask: Callable[[Size], Mask] | None = None


@dataclass(frozen=True)
class Sheet:
    """One annotated picture: its file as written, the folders it may lie in, the (w, h) that is stated, which file
    states it, and whether stored pixels are meant where the size does not tell."""

    file: str
    roots: tuple[Path, ...]
    size: Size | None
    source: str
    stored: bool
    others: tuple[str, ...] = ()  # further names that it may have

    @property
    def name(self) -> str:
        """The file's name without folders."""
        return clean(PurePosixPath(self.file.replace("\\", "/")).name)


@dataclass(frozen=True)
class Reading:
    """Reads one entry: the picture, and the objects of one class in it."""

    reader: Reader
    sheet: Sheet
    label: Label
    things: tuple[Thing, ...]

    def __call__(self) -> Raw:
        """Raises XaiError where the picture is not there, cannot be read or has another size than is stated."""
        name = self.sheet.name
        path = find(self.sheet)
        raw = self.reader(path, name)
        with path.open("rb") as stream:
            turn = orientation(stream, name)
        h, w = raw.pixels.shape[1:]
        if self._on_stored((h, w), turn):
            grid = (w, h) if turn >= 5 else (h, w)
        else:
            grid, turn = (h, w), 1
        known = [t for t in self.things if t.box is not None]
        masks = [t.mask(grid) for t in self.things if t.mask is not None]
        mask = turned_mask(joined_masks(masks), turn) if masks else None
        if not known:
            return Raw(raw.pixels, self.label, mask=mask)
        boxes = turned_boxes(as_boxes([t.box for t in known], f"The boxes of {name}"), turn, grid)
        labels = None if self.label is None else (self.label,) * len(known)
        return Raw(raw.pixels, self.label, boxes, mask, labels, np.array([t.difficult for t in known], dtype=bool))

    def _on_stored(self, shown: Size, turn: int) -> bool:
        """Whether the annotation means the stored pixels, which EXIF may show turned; `shown` is (h, w)."""
        stated, (h, w) = self.sheet.size, shown
        if stated is None:
            return self.sheet.stored
        on_shown, on_stored = stated == (w, h), stated == ((h, w) if turn >= 5 else (w, h))
        if not (on_shown or on_stored):
            raise error(self.sheet.name, f"{stated[0]} x {stated[1]} pixels, as {self.sheet.source} says", f"{w} x {h}",
                        "Take the picture that the boxes were drawn on, or scale them to this one")
        return on_stored and (self.sheet.stored or not on_shown)


def find(sheet: Sheet) -> Path:
    """The picture's file in the first of its folders that has it. Raises XaiError."""
    for file in (sheet.file, *sheet.others):
        found = below(sheet.roots, file, f"A picture's file in {sheet.source}")
        if found is not None:
            return found
    raise error(sheet.name, "on disk", f"no file {sheet.file!r} in {_folders(sheet.roots)}",
                "Put it there, or name its folder with load_images(..., folder=...)")


def below(roots: Sequence[Path], file: str, what: str) -> Path | None:
    """The first existing file of that relative name in `roots`; never one outside of them. Raises XaiError."""
    plain = PurePosixPath(file.replace("\\", "/"))
    inside = not plain.is_absolute() or any(plain.is_relative_to(r.absolute()) for r in roots)
    if ".." in plain.parts or not inside or "\0" in file or not plain.name:
        raise error(what, f"a path inside {_folders(roots)}", repr(file),
                    "Write it relative to its folder, and name that with load_images(..., folder=...)")
    return next((root / plain for root in roots if os.path.isfile(root / plain)), None)


def clean(text: str) -> str:
    """Text that can be written as UTF-8: a name with stray bytes must not break the record."""
    return text.encode("utf-8", "replace").decode()


def named(path: Path) -> str:
    """A file's name without its folder."""
    return clean(path.name)


def stated_size(width: Any, height: Any) -> Size | None:
    """(w, h) where both are stated; many tools write 0 for what they do not know."""
    if is_number(width) and is_number(height) and min(width, height) >= 1:
        return int(width), int(height)
    return None


def _folders(roots: Sequence[Path]) -> str:
    shown = [clean(str(r)) for r in roots[:3]]
    return ", ".join(shown) + (", ..." if len(roots) > 3 else "")


Group = dict[tuple[Sheet, Label], list[Thing | XaiError]]


def listing(found: Group, names: Iterable[str], read: Reader, odd: Sequence[Entry], source: str) -> Listing:
    """One entry a picture and class; `odd` are faults that belong to no picture."""
    entries = []
    for (sheet, label), things in found.items():
        name = sheet.name if label is None else f"{sheet.name}#{label}"
        fault = next((t for t in things if isinstance(t, XaiError)), None)
        good = tuple(t for t in things if isinstance(t, Thing))
        entries.append(broken(name, fault, label) if fault else Entry(name, Reading(read, sheet, label, good), label))
    if not entries and not odd:
        raise error(source, "a file with annotated pictures", "none with an object", "Check that it is the right one")
    return Listing((*entries, *odd), tuple(names) or None)
