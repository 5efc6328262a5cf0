"""MaxBoxAcc: how well the boxes around what a map marks fit the object's, at the best threshold of the whole set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from analyzers.evaluation._contours import best, largest, outlines
from analyzers.evaluation._regions import regions
from xai.analyzer import param
from xai.metric import Case, Metric, Score, Scored
from xai.panels import Axis, shown

DELTAS = (0.3, 0.5, 0.7)
AXES = (Axis("threshold, as a share of the map's range"), Axis("IoU"))
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WSOL(Metric):
    """MaxBoxAcc: how well the box around what a map marks fits the object's box, at one threshold for the whole set.

    The map (the method's view) is resized to the input's size, scaled to [0, 1] by its least and greatest value and
    cut to 8 bits. For tau = 0, step, 2 step, ... < 1 the pixels above int(255 tau), strictly, are outlined. v1 takes
    the box of the contour of the largest area, v2 the boxes of all contours, those around holes too. A contour's box is
    (x, y, min(x + w, W - 1), min(y + h, H - 1)), one pixel too wide and high, and its IoU with a true box counts both
    ends (+ 1), as in the official code: a map that is the object's own w x h box has IoU w h / ((w + 1) (h + 1)).
    Where nothing is outlined the box is (0, 0, 0, 0). True boxes are cut to the frame, taken to the last pixel that
    they hold and truncated to whole pixels of the input; where only a mask is known, its bounding box is meant.
    acc(tau) is the share of pictures whose best IoU reaches delta; maxboxacc_v1 = max over tau of acc(tau), delta 0.5;
    maxboxacc_v2 = the mean over delta 0.3, 0.5, 0.7 of each one's own maximum. The threshold is chosen once, for all
    pictures: one for each would flatter. iou, of our own, needs no choice: the IoU of v1 averaged over tau.
    pxap, where masks are known: the area under the precision-recall curve of all pixels of the set at once.

    A map that is not finite or the same everywhere has IoU 0 at every threshold. A picture without a box in the frame
    has no score. resize=bilinear judges the map as the other metrics see it. The official size is 224 x 224 without
    a crop (?crop=squash on the model's spec).

    Reads     one model, images, their boxes or masks; explained is the label unless a target is named
    Yields    MaxBoxAcc v1 and v2 and PxAP of the set, the mean IoU of each map and its curve over the thresholds
    Raises    XaiError if a label is not known and no target is named
    Cost      no pass beyond the map; about 0.15 s a map of 224 x 224 on one core
    Reference Choe, Oh, Lee, Chun, Akata, Shim 2020, "Evaluating weakly supervised object localization methods right",
              arXiv:2001.07437; v2: arXiv:2007.04178
    """

    of: str = param("gradcam", "attribution that is judged, or several separated by commas; parameters as "
                               "smoothgrad(samples=20)")
    step: float = param(0.001, "distance between thresholds tau in [0, 1)", low=0.0001, high=0.5)
    resize: str = param("bicubic", "how a map is brought to the input's size: bicubic (official) or bilinear",
                        choices=("bicubic", "bilinear"))
    pixel_step: float = param(0.01, "distance between the thresholds of pxap", low=0.0001, high=0.5)

    needs = frozenset({"forward", "images", "labels", "boxes"})
    group: ClassVar[str] = "Localisation"
    scores: ClassVar[dict[str, Score]] = {
        "iou": Score("IoU of the largest contour's box with the object's, averaged over the thresholds", "higher"),
        "maxboxacc_v1": Score("share of pictures whose largest contour's box has an IoU of 0.5 at the set's best "
                              "threshold", "higher"),
        "maxboxacc_v2": Score("the same with the best of all contours, mean over IoU 0.3, 0.5, 0.7", "higher"),
        "pxap": Score("area under the precision-recall curve of all pixels (NaN without masks)", "higher")}
    curves: ClassVar[dict[str, tuple[Axis, Axis]]] = {"iou_v1": AXES, "iou_v2": AXES}
    worst: ClassVar[float] = 0.0
    explains: ClassVar[str] = "label"

    def levels(self) -> list[int]:
        """The thresholds that differ, 0 to 254."""
        return sorted({int(tau * 255) for tau in np.arange(0, 1, self.step)})

    def places(self, name: str, count: int) -> Tensor:
        """(count,) the levels as shares of the range."""
        return torch.tensor(self.levels(), dtype=torch.float32) / 255

    def score(self, case: Case) -> Scored:
        """The mean IoU of each picture; traces: the IoU at each threshold, and the pixels' histograms."""
        levels, good = self.levels(), case.sound()
        bins = len(np.arange(0, 1, self.pixel_step)) + 2
        one, all_of, pixels = (torch.full((len(case.raw), k), torch.nan, dtype=torch.float64)
                               for k in (len(levels), len(levels), 2 * bins))
        for i, region in enumerate(regions(case)):
            true = true_boxes(case, i, region)
            if region is None or not len(true):
                continue
            scaled = unit(resized(case, i, self.resize)) if good[i] else np.zeros(case.shown.shape[1:])
            if case.batch.images[i].mask is not None:
                pixels[i] = torch.from_numpy(histograms(scaled, region.numpy(), self.pixel_step))
            if good[i]:
                v1, v2 = ious(scaled, true)
                one[i], all_of[i] = torch.from_numpy(v1[levels]), torch.from_numpy(v2[levels])
            else:
                one[i], all_of[i] = 0.0, 0.0
        return Scored({"iou": one.mean(1)}, {"iou_v1": one, "iou_v2": all_of, "pixels": pixels})

    def pooled(self, traces: dict[str, Tensor]) -> dict[str, float]:
        """MaxBoxAcc v1 and v2, PxAP."""
        one, all_of, pixels = (traces[name][torch.isfinite(traces[name][:, 0])]
                               for name in ("iou_v1", "iou_v2", "pixels"))
        each = [_highest(all_of, delta) for delta in DELTAS]
        return {"maxboxacc_v1": _highest(one, 0.5), "maxboxacc_v2": sum(each) / len(each),
                "pxap": average_precision(pixels.sum(0).numpy()) if len(pixels) else math.nan}


def _highest(ious: Tensor, delta: float) -> float:
    """The share of rows (n, thresholds) that reach delta, at the threshold where it is highest."""
    return float((ious >= delta).double().mean(0).max()) if len(ious) else math.nan


def resized(case: Case, i: int, how: str) -> Floats:
    """(H, W) the method's view of a map at the input's size."""
    if how == "bilinear":
        return np.asarray(case.shown[i].double().numpy())
    seen = torch.from_numpy(shown(case.raw[i].double().numpy(), case.method.view))
    size = case.shown.shape[1:]
    if seen.shape == size:
        return np.asarray(seen.numpy())
    return np.asarray(F.interpolate(seen[None, None], size, mode="bicubic", align_corners=False)[0, 0].numpy())


def unit(values: Floats) -> Floats:
    """A map scaled to [0, 1]; zeros where it holds what is no number or is the same everywhere."""
    if not np.isfinite(values).all() or values.max() <= values.min():
        return np.zeros(values.shape)
    above = values - values.min()
    return np.asarray(above / above.max())


def true_boxes(case: Case, i: int, region: Tensor | None) -> npt.NDArray[np.int64]:
    """(k, 4) x0, y0, x1, y1 of the last pixels that are held, in whole pixels of the input; none may be left."""
    none, (height, width) = np.zeros((0, 4), dtype=np.int64), case.shown.shape[1:]
    found, image = case.batch.boxes(i), case.batch.images[i]
    if region is None:
        return none
    if image.boxes is not None and image.difficult is not None:  # crowds and the like are no single object
        found = case.batch.frames[i].boxes_to_input(image.boxes[~image.difficult], height, width)
    if found is None:
        y, x = np.nonzero(region.numpy())
        return np.array([[x.min(), y.min(), x.max(), y.max()]], dtype=np.int64)
    frame, most = case.batch.frames[i], np.array([width, height] * 2, dtype=np.float64)
    boxes = np.clip(np.asarray(found, dtype=np.float64), 0, most)
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    last = boxes - np.array([0, 0, 1 / frame.sx, 1 / frame.sy])  # the original's last pixel, not the edge behind it
    whole = np.trunc(np.round(last, 6)).astype(np.int64)
    whole[:, 2:] = np.maximum(whole[:, 2:], whole[:, :2])
    return np.asarray(np.minimum(whole, most.astype(np.int64) - 1))


def ious(scaled: Floats, true: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """(255,) each: at each threshold the best IoU with a true box, of the largest contour's box (v1) and of any
    contour's (v2); scaled (H, W) in [0, 1]."""
    height, width = scaled.shape
    picture = (scaled * 255).astype(np.uint8)
    empty = overlap(np.zeros((1, 4), dtype=np.int64), true)[0]
    boxes = largest(picture)
    one = np.where(boxes[:, 0] >= 0, overlap(wider(boxes, height, width), true), empty)
    found = outlines(picture)
    seen = best(found, overlap(wider(found.boxes, height, width), true))
    return one, np.where(seen >= 0, seen, empty)


def wider(boxes: npt.NDArray[np.int64], height: int, width: int) -> npt.NDArray[np.int64]:
    """Boxes of the last pixels held, as the official code has them: one pixel too far, but inside the picture."""
    return np.asarray(np.minimum(boxes + np.array([0, 0, 1, 1]), np.array([width, height] * 2) - 1))


def overlap(boxes: npt.NDArray[np.int64], true: npt.NDArray[np.int64]) -> Floats:
    """(n,) the best IoU of boxes (n, 4) with any of the true ones (k, 4), both ends counted."""
    low = np.maximum(boxes[:, None, :2], true[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], true[None, :, 2:])
    common = np.maximum(0, high - low + 1).prod(2)
    mine, theirs = ((b[:, 2:] - b[:, :2] + 1).prod(1) for b in (boxes, true))
    return np.asarray((common / (mine[:, None] + theirs - common)).max(1))


def histograms(scaled: Floats, mask: npt.NDArray[np.bool_], step: float) -> Floats:
    """(2 bins,) how many pixels of the object, and of the rest, fall between the thresholds."""
    edges = np.append(np.arange(0, 1, step), [1.0, 2.0, 3.0])
    return np.concatenate([np.histogram(scaled[where], edges)[0] for where in (mask, ~mask)]).astype(np.float64)


def average_precision(counts: Floats) -> float:
    """The sum over thresholds, from above, of precision times what recall gains, from both histograms (2 bins,)."""
    true, false = (half[::-1].cumsum() for half in np.split(counts, 2))
    if true[-1] <= 0:
        return math.nan
    precision = true / np.maximum(true + false, 1)
    return float((precision[1:] * np.diff(true / true[-1])).sum())
