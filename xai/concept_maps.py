"""Which concepts a picture shows and where: colours, textures, shapes, parts, scenes, as exact maps of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xai.errors import error

Concept = tuple[str, str]  # (category, name)
NONE = -1  # in a plane: no concept here

# The eleven basic colour terms (Berlin and Kay 1969), each with the sRGB value that stands for it.
COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0), "blue": (40, 70, 220), "brown": (120, 72, 30), "green": (30, 150, 50), "grey": (128, 128, 128),
    "orange": (250, 140, 20), "pink": (250, 150, 190), "purple": (130, 40, 160), "red": (215, 30, 35),
    "white": (255, 255, 255), "yellow": (250, 225, 40),
}  # fmt: skip


@dataclass(frozen=True)
class ConceptMaps:
    """The concepts of one picture.

    concepts: all that its data set knows, as (category, name), in the order of their numbers. planes (p, h, w) int32:
    at each place a concept's number or -1; of concepts that overlap each lies in a plane of its own. They cover the
    whole picture, at their own resolution. whole: numbers of concepts that are true of the picture as a whole, a scene.
    annotated: the categories that somebody looked for in this picture (None: those of which it shows a concept); where
    a data set names objects only in some of its pictures, the others count neither for nor against an object's unit.
    """

    concepts: tuple[Concept, ...]
    planes: npt.NDArray[np.int32]
    whole: tuple[int, ...] = ()
    annotated: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.planes.ndim != 3:
            raise error("the planes of concepts", "(p, h, w)", self.planes.shape, "Give one map a plane")
        low, high = (int(self.planes.min()), int(self.planes.max())) if self.planes.size else (NONE, NONE)
        low, high = min([low, *self.whole]), max([high, *self.whole])
        if low < NONE or high >= len(self.concepts):
            raise error("a concept's number", f"from {NONE} (none) to {len(self.concepts) - 1}",
                        low if low < NONE else high, "Number the concepts as they are listed")

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories that this picture was annotated for."""
        if self.annotated is not None:
            return self.annotated
        shown = np.unique(self.planes)
        numbers = {int(k) for k in shown if k != NONE} | set(self.whole)
        return tuple(dict.fromkeys(self.concepts[k][0] for k in sorted(numbers)))


def colour_plane(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """(h, w): for each pixel of rgb (h, w, 3) the number, in `COLOURS`, of the colour that is nearest in CIE Lab."""
    from skimage.color import rgb2lab

    lab = rgb2lab(rgb)
    known = rgb2lab(np.array([list(COLOURS.values())], dtype=np.uint8))[0]
    apart = ((lab[:, :, None] - known) ** 2).sum(-1)
    return np.asarray(apart.argmin(-1), dtype=np.int32)


def named_maps(rgb: npt.NDArray[np.uint8], label: str | None, where: npt.NDArray[np.bool_] | None,
               known: Sequence[Concept] = ()) -> ConceptMaps:
    """For a picture rgb (h, w, 3) that bears no concepts of its own: its colours, and its class as a concept of the
    category "label": at `where` (h, w), or of the whole picture where that is not known."""
    colours = tuple(("color", name) for name in COLOURS)
    planes: list[Any] = [colour_plane(rgb)]
    concepts, whole = (*colours, *known), tuple[int, ...]()
    if label is not None:
        if ("label", label) not in concepts:
            concepts = (*concepts, ("label", label))
        number = concepts.index(("label", label))
        if where is None:
            whole = (number,)
        else:
            planes.append(np.where(where, number, NONE).astype(np.int32))
    return ConceptMaps(concepts, np.stack(planes), whole,
                       ("color", "label") if label is not None else ("color",))
