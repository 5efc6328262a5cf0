"""A picture cut into segments: superpixels, regions, a grid, or a label map that somebody drew."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from xai.errors import did_you_mean, error
from xai.preprocessing import Frame

METHODS = ("slic", "quickshift", "felzenszwalb", "watershed", "grid")
LOSSLESS = ("PNG", "TIFF", "BMP", "DIB", "GIF", "PPM")  # of label maps: in any other, colours are not what was drawn
ENDINGS = (".npy", ".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm")
Array = np.ndarray[Any, np.dtype[Any]]


def check_segmentation(how: str, name: str) -> None:
    """Raise XaiError where `how` is neither a method nor a label map that is there; `name` is the parameter's."""
    path = _path(how)
    found = path is not None and (path.is_dir() or (path.is_file() and path.suffix.lower() in ENDINGS))
    if how in METHODS or found:
        return
    wanted = f"one of {', '.join(METHODS)}, or a label map ({', '.join(ENDINGS)}; a folder: one for each picture)"
    if path is not None and path.is_file():
        raise error(name, wanted, f"{how!r}, a file of another kind", "Save the labels as .npy or .png")
    near = did_you_mean(how, METHODS)
    raise error(name, wanted, f"{how!r}" + ("" if near else ", which is not there"), near or "Check the spelling")


def _path(how: str) -> Path | None:
    """The file or folder of that name; None for what can be none."""
    try:
        path = Path(how.strip()).expanduser()
        path.is_file()  # a name that is too long raises
        return path if how.strip() else None
    except (RuntimeError, OSError, ValueError):
        return None


def segment(pixels: Array, how: str | Array = "slic", count: int = 64, smooth: float = 0.0, *,
            frame: Frame | None = None, original: tuple[int, int] | None = None, picture: str = "") -> Tensor:
    """The segment of each pixel: labels (H, W) int64 on the CPU, 0 to n - 1, each with pixels.

    pixels (H, W, 3) uint8: what the network saw, as `Batch.seen` has it: grey repeated, of more than three channels the
    first three, so that the others have no say in where the borders run. count: about how many; slic, watershed and
    grid keep near it, felzenszwalb takes its least size from it, quickshift has its own. smooth: standard deviation, in
    pixels, of a Gaussian that is applied first, for speckled pictures: for the segmentation alone.

    slic: k-means over colour and place (Achanta et al. 2012), compactness 25; quickshift: modes of a density (Vedaldi
    and Soatto 2008), with the parameters of the lime package, and equal to it; felzenszwalb: a graph cut (Felzenszwalb
    and Huttenlocher 2004), segments of very different sizes; watershed: basins of the edge strength, crumbs of less
    than an eighth of the mean size merged into the neighbour with the longest border; grid: equal rectangles, row by
    row.

    how may also be a label map: an array, a file (.npy of whole numbers, read without running code; a picture, where
    each grey level, palette entry or colour is a segment) or a folder with one that bears the name of `picture`. Every
    distinct value is a segment, in order of value. It has the size of the picture (`original` (h, w), where `frame`
    says which of its pixels the network saw; each takes the label at its centre) or, if not that, of the input.

    Nothing is drawn at random. Raises XaiError for an unknown method, a picture with too few pixels, a label map that
    cannot be read or is of another size.
    """
    height, width = pixels.shape[:2]
    if not isinstance(how, str):
        return _contiguous(_fitted(_whole(np.asarray(how), "the label map"), (height, width), frame, original))
    if how not in METHODS:
        check_segmentation(how, "the segmentation")
        sizes = {(height, width), *([original] if original is not None and frame is not None else [])}
        return _contiguous(_fitted(_read(_file(Path(how.strip()).expanduser(), picture), sizes), (height, width), frame,
                                   original))
    if min(height, width) < 2:
        raise error("a picture to be cut into segments", "at least 2 pixels high and wide", f"{height} x {width}",
                    "Use a larger input")
    if count < 1:
        raise error("the number of segments", "at least 1", count, "Ask for more")
    return _contiguous(_cut(_smoothed(pixels, smooth), how, count))


def _cut(pixels: Array, how: str, count: int) -> Array:
    from skimage import color
    from skimage import filters as untyped_filters
    from skimage import segmentation as untyped_segmentation

    filters, segmentation = cast(Any, untyped_filters), cast(Any, untyped_segmentation)
    height, width = pixels.shape[:2]
    area = height * width
    if how == "grid":
        rows = min(max(1, round((count * height / width) ** 0.5)), height)
        columns = min(max(1, round(count / rows)), width)
        return np.asarray((np.arange(height) * rows // height)[:, None] * columns + np.arange(width) * columns // width)
    if how == "quickshift":  # rng: added to its densities, so that no two are equal
        return np.asarray(segmentation.quickshift(pixels, kernel_size=4, max_dist=200, ratio=0.2, rng=42))
    if how == "felzenszwalb":  # its scale is in pixels of a region: 300 at 224 x 224
        return np.asarray(segmentation.felzenszwalb(pixels, scale=300 * area / 224**2, sigma=0.8,
                                                    min_size=max(1, area // (6 * count))))
    if how == "watershed":
        found = segmentation.watershed(filters.sobel(color.rgb2gray(pixels)), min(count, area), compactness=0.001)
        return merged(np.asarray(found), area / count / 8)
    return np.asarray(segmentation.slic(pixels, n_segments=min(count, area), compactness=25, sigma=1, start_label=0))


def _smoothed(pixels: Array, sigma: float) -> Array:
    if sigma <= 0:
        return pixels
    from scipy import ndimage

    blurred = ndimage.gaussian_filter(pixels.astype(np.float64), (sigma, sigma, 0), mode="nearest")
    return np.asarray(blurred.round().astype(np.uint8))


def _contiguous(labels: Array) -> Tensor:
    found, places = np.unique(labels, return_inverse=True)
    contiguous = torch.from_numpy(places.reshape(labels.shape).astype(np.int64))
    assert int(contiguous.max()) + 1 == len(found)
    return contiguous


def merged(labels: Array, least: float) -> Array:
    """labels (H, W) whose segments of fewer than `least` pixels have become part of the neighbour with the longest
    common border (of equal ones the first); the smallest goes first."""
    names, places = np.unique(labels, return_inverse=True)
    places, n = places.reshape(labels.shape), len(names)
    area = np.bincount(places.ravel(), minlength=n).astype(float)
    border = np.zeros((n, n), dtype=np.int64)
    for one, two in ((places[1:], places[:-1]), (places[:, 1:], places[:, :-1])):
        np.add.at(border, (one.ravel(), two.ravel()), 1)
    border += border.T
    np.fill_diagonal(border, 0)
    home = np.arange(n)
    while (area > 0).sum() > 1:
        small = int(np.where(area > 0, area, np.inf).argmin())
        if area[small] >= least:
            break
        into = int(border[small].argmax())
        home[home == small] = into
        border[into] += border[small]
        border[:, into] += border[:, small]
        border[small] = border[:, small] = border[into, into] = 0
        area[into], area[small] = area[into] + area[small], 0
    return np.asarray(names[home[places]])


# --- label maps ---
def _file(path: Path, picture: str) -> Path:
    """The file itself, or in a folder the one that bears the picture's name."""
    if not path.is_dir():
        return path
    there = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS and p.is_file())
    name, stem = Path(picture).name or picture, Path(picture).stem or picture
    found = [p for p in there if p.stem == name] or [p for p in there if p.stem == stem]
    if len(found) != 1:
        raise error(f"the folder of label maps {path}", f"one with one label map named {stem!r} for that picture",
                    ", ".join(p.name for p in found) or "none", f"Save it as {stem}.npy or {stem}.png")
    return found[0]


def _read(path: Path, sizes: set[tuple[int, int]]) -> Array:
    """The values of a label map, one whole number a pixel; nothing is decoded that is not of one of the sizes."""
    what = f"the label map {path}"
    if path.suffix.lower() == ".npy":
        try:
            mapped = np.lib.format.open_memmap(path, mode="r")  # a pickle or an archive is refused
        except (OSError, ValueError, EOFError) as problem:
            raise error(what, "an array file of numbers", f"one that cannot be read ({problem})",
                        "Save it with numpy.save from an array of whole numbers") from None
        _check_size(what, mapped.shape, sizes)
        return _whole(np.array(mapped), what)
    from PIL import Image as Pil

    try:
        with Pil.open(path, formats=LOSSLESS) as opened:
            _check_size(what, (opened.height, opened.width), sizes)
            values: Array = np.asarray(opened)
    except (OSError, ValueError, SyntaxError, Pil.DecompressionBombError) as problem:
        raise error(what, "a picture without losses, one value a segment", f"one that cannot be read ({problem})",
                    "Save it as PNG, or as .npy") from None
    if values.ndim == 3:  # each colour is a segment
        values = np.unique(values.reshape(-1, values.shape[2]), axis=0, return_inverse=True)[1].reshape(
            values.shape[:2])
    return _whole(values, what)


def _whole(values: Array, what: str) -> Array:
    if values.ndim != 2 or values.dtype.kind not in "buif" or not values.size:
        got = f"{values.dtype} of shape {values.shape}"
        raise error(what, "an array (height, width) of whole numbers", got, "Give one number a pixel")
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == values.round()).all()):
        raise error(what, "one of whole numbers", "fractions or values that are no numbers",
                    "Give the number of a segment for each pixel")
    return values


def _check_size(what: str, got: tuple[int, ...], sizes: set[tuple[int, int]]) -> None:
    if got not in sizes:
        wanted = " or ".join(f"{h} x {w}" for h, w in sorted(sizes))
        raise error(what, f"{wanted} pixels (height x width), as the input or the picture",
                    " x ".join(map(str, got)) or "a single number", "Draw it on the picture or on the input")


def _fitted(values: Array, size: tuple[int, int], frame: Frame | None, original: tuple[int, int] | None) -> Array:
    """The values where the input's pixels have their centres; `size` is that of the input."""
    sizes = {size, *([original] if original is not None and frame is not None else [])}
    _check_size("the label map", values.shape, sizes)
    if frame is None or original is None or values.shape != original:
        return values
    rows = np.floor(frame.y0 + (np.arange(size[0]) + 0.5) * frame.sy).astype(int).clip(0, original[0] - 1)
    columns = np.floor(frame.x0 + (np.arange(size[1]) + 0.5) * frame.sx).astype(int).clip(0, original[1] - 1)
    return np.asarray(values[rows[:, None], columns])


# --- what is known of segments ---
def mean_colours(x: Tensor, labels: Tensor) -> Tensor:
    """The mean of each channel over each segment, on its pixels: x (C, H, W) and labels (H, W) give (C, H, W)."""
    flat, place = x.flatten(1).cpu().double(), labels.flatten().cpu()
    count = place.bincount()
    sums = torch.zeros(len(flat), len(count), dtype=torch.float64).index_add_(1, place, flat)
    return (sums / count)[:, place].view(x.shape).to(x)


def shares(labels: Tensor) -> Tensor:
    """(n,) float64: the share of the pixels that each segment of labels (H, W) has."""
    return labels.flatten().bincount().double() / labels.numel()


def lined(pixels: Array, labels: Tensor) -> Array:
    """pixels (H, W, 3) uint8, a little paler on the last pixels before each border between segments."""
    places, found = labels.cpu().numpy(), pixels.copy()
    edge = np.zeros(places.shape, dtype=bool)
    edge[:-1] |= places[:-1] != places[1:]
    edge[:, :-1] |= places[:, :-1] != places[:, 1:]
    found[edge] = (found[edge].astype(int) * 2 + 255) // 3
    return np.asarray(found)


def outlines(mask: Tensor) -> list[tuple[tuple[float, float], ...]]:
    """The outlines of mask (H, W) bool as closed polygons of (x, y), x to the right, y down, in pixels: one around each
    connected part, one around each hole. They run on the edges of pixels (the first pixel is 0 to 1), with the mask on
    their right hand; only corners are listed. Parts that touch at a corner alone stay apart.
    """
    padded = np.pad(mask.cpu().numpy().astype(bool), 1)
    here = padded[1:-1, 1:-1]
    ways: dict[tuple[int, int], list[tuple[int, int]]] = {}  # where an edge begins: the directions that lead on
    for (dy, dx), (oy, ox), way in (((-1, 0), (0, 0), (1, 0)), ((0, 1), (0, 1), (0, 1)),
                                    ((1, 0), (1, 1), (-1, 0)), ((0, -1), (1, 0), (0, -1))):
        beside = padded[1 + dy : padded.shape[0] - 1 + dy, 1 + dx : padded.shape[1] - 1 + dx]
        for y, x in np.argwhere(here & ~beside).tolist():
            ways.setdefault((x + ox, y + oy), []).append(way)
    polygons = []
    while ways:
        start = place = min(ways, key=lambda p: (p[1], p[0]))
        way = (0, 0)
        corners: list[tuple[float, float]] = []
        while place in ways:
            onward = ways[place]
            right = (-way[1], way[0])
            turn = onward.pop(onward.index(right)) if right in onward else onward.pop()
            if not onward:
                del ways[place]
            if turn != way:
                corners.append((float(place[0]), float(place[1])))
            place, way = (place[0] + turn[0], place[1] + turn[1]), turn
            if place == start:
                break
        polygons.append(tuple(corners))
    return polygons
