"""The pointing game: whether a map's highest point lies on the object, and how much of the map does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from analyzers.evaluation._regions import original_region, regions, share
from xai.analyzer import param
from xai.errors import error
from xai.metric import Case, Metric, Score, Scored
from xai.panels import shown
from xai.preprocessing import Frame

OFFICIAL, SIDE = 15.0, 224.0  # pixels, and the short side from which on they are meant


@dataclass(frozen=True)
class PointingGame(Metric):
    """Pointing game: whether the map's highest point lies on the object, and how much of its energy does.

    The map M (the method's view, at its own resolution) is enlarged bilinearly onto the ORIGINAL picture's pixels: the
    centre (u + 1/2, v + 1/2) of a pixel lies at ((u + 1/2 - x0) / sx, (v + 1/2 - y0) / sy) of the input, frame x0, y0,
    sx, sy; what the crop cut off cannot be pointed at, and where it cut off nothing this is the usual resize. A hit:
    some pixel of the object has a squared distance below tolerance^2 from the highest pixel, strictly, so that 14
    pixels beside it still hit with a tolerance of 15 and 15 do not, and a tolerance of 0 never hits. tolerance=auto is
    15 original pixels, or 15/224 of the short side where that is below 224. Of several highest pixels one is drawn at
    random, seeded; ties=first takes the first in reading order, as TorchRay does. by_class is the mean over the
    classes that occur of hits / (hits + misses), so that each class counts alike. Energy: sum of max(M, 0) inside the
    object's region / sum of max(M, 0), in the input's frame; chance: the region's share of the frame, what a flat map's
    energy would be (a random point with a tolerance hits more often: see the control `random`).

    A map that is not finite or the same everywhere misses, with energy 0. A picture has no score where nothing is known
    of its object, the crop left none of it, or all its boxes are marked difficult.

    Quantus' PointingGame (group Localisation) has no tolerance, works in the input's frame and counts a hit if any of
    several highest pixels hits, so that a flat map always does; elsewhere it is this one with a tolerance of 1.

    Reads     one model, images, their masks or boxes; explained is the label unless a target is named
    Yields    hit (0 or 1), energy and chance of every map, and the accuracy as a mean over classes
    Raises    XaiError if a label is not known and no target is named, or the tolerance is no number
    Cost      no pass beyond the map
    Reference Zhang et al. 2016, "Top-down neural attention by excitation backprop", arXiv:1608.00507; as in TorchRay,
              Fong, Patrick, Vedaldi 2019; energy: Wang et al. 2020, "Score-CAM", arXiv:1910.01279
    """

    of: str = param("gradcam", "attribution that is judged, or several separated by commas; parameters as "
                               "smoothgrad(samples=20)")
    tolerance: str = param("auto", "distance in the original's pixels below which a point hits; auto: 15, or 15/224 of "
                                   "the short side of a smaller picture")
    ties: str = param("random", "which of several highest pixels points: random (seeded) or first",
                      choices=("random", "first"))

    needs = frozenset({"forward", "images", "labels", "boxes"})
    group: ClassVar[str] = "Localisation"
    scores: ClassVar[dict[str, Score]] = {
        "hit": Score("share of maps whose highest point lies on the object or closer than the tolerance", "higher",
                     hits=True),
        "energy": Score("share of the positive relevance that lies on the object", "higher"),
        "chance": Score("share of the picture that the object covers"),
        "by_class": Score("hits as a mean over the classes that occur", "higher")}
    worst: ClassVar[float] = 0.0
    explains: ClassVar[str] = "label"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within((1, 1))

    def _within(self, size: tuple[int, int]) -> float:
        """The tolerance in pixels of an original of that size."""
        if self.tolerance == "auto":
            return OFFICIAL * min(1.0, min(size) / SIDE)
        try:
            given = float(self.tolerance)
        except (TypeError, ValueError):
            given = math.nan
        if not (math.isfinite(given) and given >= 0):
            raise error(f"{self.name()}.tolerance", "auto or a number of pixels, 0 or more", repr(self.tolerance),
                        "The official one is 15")
        return given

    def score(self, case: Case) -> Scored:
        """Three numbers a picture, NaN where there is no region; traces: hit and class."""
        count = len(case.raw)
        values = {name: torch.full((count,), torch.nan, dtype=torch.float64) for name in ("hit", "energy", "chance")}
        good = case.sound()
        for i, region in enumerate(regions(case)):
            image = case.batch.images[i]
            there = original_region(image) if region is not None else None
            if region is None or there is None:
                continue
            values["chance"][i] = float(region.double().mean())
            values["hit"][i], values["energy"][i] = 0.0, 0.0
            if good[i]:
                seen = shown(case.raw[i].double().numpy(), case.method.view)
                points = highest(seen, case.batch.frames[i], tuple(case.shown.shape[1:]), image.size)
                pick = 0
                if self.ties == "random" and len(points) > 1:
                    pick = int(torch.randint(len(points), (1,), generator=case.batch.generator(i, self.name())))
                values["hit"][i] = float(len(points) > 0 and hits(there, points[pick], self._within(image.size)))
                values["energy"][i] = share(case.shown[i], region)
        classes = case.bound.classes
        kinds = torch.zeros(count) if classes is None else classes.detach().cpu()
        return Scored(values, {"hit and class": torch.stack([values["hit"], kinds.double()], 1)})

    def pooled(self, traces: dict[str, Tensor]) -> dict[str, float]:
        """The mean over classes."""
        known = traces["hit and class"]
        known = known[torch.isfinite(known[:, 0])]
        if not len(known):
            return {"by_class": math.nan}
        _, kind = torch.unique(known[:, 1], return_inverse=True)
        total = torch.bincount(kind)
        return {"by_class": float((torch.bincount(kind, weights=known[:, 0]) / total).mean())}


def highest(values: np.ndarray, frame: Frame, size: tuple[int, ...], original: tuple[int, int]) -> np.ndarray:
    """(k, 2) row and column of the highest pixels of an original (h, w) in reading order, a map (h', w') of an input of
    `size` laid onto it; none where the input shows no pixel centre of it or the map has no finite one."""
    rows, row_places = _places(frame.y0, frame.sy, size[0], original[0], values.shape[0])
    columns, column_places = _places(frame.x0, frame.sx, size[1], original[1], values.shape[1])
    if not len(rows) or not len(columns):
        return np.zeros((0, 2), dtype=np.int64)
    large = _between(_between(values, row_places).T, column_places).T
    found = np.argwhere(large == large.max())
    return np.stack([rows[found[:, 0]], columns[found[:, 1]]], 1)


def _places(start: float, step: float, side: int, original: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """The original's pixels whose centres the input shows, and where each lies among the cells' centres."""
    inside = (np.arange(original) + 0.5 - start) / step
    kept = np.flatnonzero((inside > 0) & (inside < side))
    return kept, np.clip(inside[kept] * cells / side - 0.5, 0, cells - 1)


def _between(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows of values between two neighbours, linearly; equal neighbours stay what they are to the bit."""
    low = np.minimum(places.astype(np.int64), len(values) - 1)
    high = np.minimum(low + 1, len(values) - 1)
    below, above = values[low], values[high]
    return np.asarray(below + (above - below) * (places - low)[:, None])


def hits(region: np.ndarray, point: np.ndarray, tolerance: float) -> bool:
    """Whether a pixel of the region (h, w) is closer than the tolerance to the point (row, column)."""
    row, column = int(point[0]), int(point[1])
    reach = math.ceil(tolerance)
    top, left = max(0, row - reach), max(0, column - reach)
    y, x = np.nonzero(region[top : row + reach + 1, left : column + reach + 1])
    return bool(((y + top - row) ** 2 + (x + left - column) ** 2 < tolerance**2).any())
