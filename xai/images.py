"""`Images`, a lazy, ordered collection of pictures at native size, and `load_images`, which makes one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from PIL import Image as Pil

from xai.concept_maps import ConceptMaps
from xai.errors import XaiError, error
from xai.image_arrays import Array, is_tensor
from xai.image_entries import Entry, Label, Listing, Raw, broken, joined, plain_label
from xai.image_sources import list_array, list_dataset, list_path, list_pil


def content_hash(pixels: Array) -> str:
    """16 hex digits of sha256 over "dtype CxHxW\\n" and the pixels, row by row, little-endian; no name in it."""
    head = f"{pixels.dtype.name} {'x'.join(map(str, pixels.shape))}\n".encode()
    body = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    digest = hashlib.sha256(head)
    digest.update(body.data.cast("B"))
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Image:
    """One picture at native size, as the file gives it, EXIF orientation applied, metadata dropped.

    `name`        file name without folder, "coffee", "row 17", ...
    `pixels`      (C, h, w) uint8, uint16 or float32 in [0, 1], read-only; with `normalised` any finite float32
    `hash`        of the content, see `content_hash`
    `label`       the class as the source has it: an index or a name
    `boxes`       (k, 4) float32: x0, y0, x1, y1 in pixels of this picture, x1 and y1 exclusive
    `mask`        (h, w) bool: where the labelled object is; of several, their union
    `normalised`  the pixels have passed the model's normalisation already
    `box_labels`  the class of each box; annotation files give a picture once a class, with the boxes of that class
    `difficult`   (k,) bool: boxes that a benchmark leaves out (VOC's `difficult`, COCO's `iscrowd`)
    `concepts`    which colours, textures, parts, ... it shows and where
    `alpha`       whether its file stores transparency, which reading put over white

    Make one with `Image.of`, which checks it and computes the hash.
    """

    name: str
    pixels: Array
    hash: str
    label: Label = None
    boxes: npt.NDArray[np.float32] | None = None
    mask: npt.NDArray[np.bool_] | None = None
    normalised: bool = False
    box_labels: tuple[int | str, ...] | None = None
    difficult: npt.NDArray[np.bool_] | None = None
    concepts: ConceptMaps | None = None
    alpha: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        pixels: Array,
        *,
        label: Label = None,
        boxes: npt.NDArray[np.float32] | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
        normalised: bool = False,
        box_labels: tuple[int | str, ...] | None = None,
        difficult: npt.NDArray[np.bool_] | None = None,
        concepts: ConceptMaps | None = None,
        alpha: bool = False,
    ) -> Image:
        """A picture from pixels (C, h, w) of one of the three types. Raises XaiError where the parts do not fit."""
        if pixels.ndim != 3 or pixels.dtype.name not in ("uint8", "uint16", "float32"):
            got = f"{pixels.dtype} of shape {pixels.shape}"
            raise error(name, "pixels (C, h, w) of uint8, uint16 or float32", got, "Use load_images, which converts")
        if mask is not None and mask.shape != pixels.shape[1:]:
            raise error(f"The mask of {name}", f"{pixels.shape[1:]} (h, w)", mask.shape, "Resize it to its picture")
        count = 0 if boxes is None else len(boxes)
        if boxes is not None and boxes.shape != (count, 4):
            raise error(f"The boxes of {name}", "(k, 4)", boxes.shape, "Give x0, y0, x1, y1 for each box")
        for what, given in (("box_labels", box_labels), ("difficult", difficult)):
            if given is not None and len(given) != count:
                raise error(f"{what} of {name}", f"{count} long, one a box", len(given), "Give one for each box")
        own = pixels.view()
        own.flags.writeable = False  # the hash must stay true
        return cls(name, own, content_hash(own), label, boxes, mask, normalised, box_labels, difficult, concepts,
                   alpha)

    @property
    def all_difficult(self) -> bool:
        """Whether it has boxes and all are marked difficult: such a picture is left out of VOC's pointing game."""
        return self.difficult is not None and len(self.difficult) > 0 and bool(np.all(self.difficult))

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) in pixels."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[2])

    def rgb(self) -> npt.NDArray[np.uint8]:
        """(h, w, 3) uint8 to look at: grey (or the first of two channels) repeated, of more channels the first three.

        uint16 and floats are scaled from their full range; a normalised picture is stretched from its least to its
        greatest value, as its true range is not known here.
        """
        shown = self.pixels[:3] if len(self.pixels) >= 3 else np.repeat(self.pixels[:1], 3, axis=0)
        if shown.dtype == np.uint16:
            shown = (shown.astype(np.uint32) + 128) // 257
        elif shown.dtype != np.uint8:
            unit = shown.astype(np.float64)
            if self.normalised:
                unit = (unit - unit.min()) / (np.ptp(unit) or 1.0)
            shown = np.rint(255 * unit)
        return np.ascontiguousarray(np.moveaxis(shown, 0, 2), dtype=np.uint8)

    def thumbnail(self, side: int) -> npt.NDArray[np.uint8]:
        """`rgb()` scaled down (Lanczos, never up) so that the longer side is at most `side`: (h', w', 3) uint8."""
        if side < 1:
            raise error("side", "at least 1 pixel", side, "Ask for a larger thumbnail")
        h, w = self.size
        scale = min(1.0, side / max(h, w))
        size = max(1, round(w * scale)), max(1, round(h * scale))
        small = Pil.fromarray(self.rgb()).resize(size, Pil.Resampling.LANCZOS, reducing_gap=3.0)
        return np.array(small, dtype=np.uint8)


class Images(Sequence[Image]):
    """A lazy, ordered collection of pictures: a picture is loaded each time it is asked for and never kept.

    `names` are known beforehand, `label_names` where the source knows its classes. An index gives an Image (XaiError
    for a picture that cannot be read), a slice gives Images, `+` puts two collections one after the other.
    """

    def __init__(self, entries: Iterable[Entry], label_names: tuple[str, ...] | None = None) -> None:
        self._entries = tuple(entries)
        self.label_names = label_names

    @classmethod
    def of(cls, images: Iterable[Image], label_names: tuple[str, ...] | None = None) -> Images:
        """A collection of pictures that are loaded already."""
        return cls((Entry(i.name, partial(_raw, i), i.label, i.normalised) for i in images), label_names)

    @property
    def names(self) -> tuple[str, ...]:
        """The pictures' names in order; two pictures may bear the same."""
        return tuple(e.name for e in self._entries)

    @property
    def sources(self) -> tuple[str, ...]:
        """For each picture which of several named paths it is from, as that was written; "" where one was named."""
        return tuple(e.source for e in self._entries)

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels that are known before a picture is read; None for the others."""
        return tuple(e.label for e in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, i: int) -> Image: ...
    @overload
    def __getitem__(self, i: slice) -> Images: ...
    def __getitem__(self, i: int | slice) -> Image | Images:
        if isinstance(i, slice):
            return Images(self._entries[i], self.label_names)
        return _image(self._entries[i])

    def take(self, places: Iterable[int]) -> Images:
        """Those at the given places, in that order; none is loaded."""
        return Images((self._entries[i] for i in places), self.label_names)

    def __iter__(self) -> Iterator[Image]:
        return map(_image, self._entries)

    def __add__(self, other: Images) -> Images:
        if not isinstance(other, Images):
            return NotImplemented
        return _images(joined([_listing(self), _listing(other)]))

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:3]) + (", ..." if len(self) > 3 else "")
        return f"<{len(self)} images: {shown}>" if len(self) else "<no images>"

    def good(self) -> tuple[Images, list[tuple[str, str]]]:
        """The pictures that can be read, and (name, sentence) of those that cannot. Reads each once and keeps none."""
        good: list[Entry] = []
        bad: list[tuple[str, str]] = []
        for entry in self._entries:
            try:
                entry.read()
            except XaiError as reason:
                bad.append((entry.name, str(reason)))
            else:
                good.append(entry)
        return Images(good, self.label_names), bad


def load_images(
    source: Any,
    *,
    normalised: bool = False,
    names: Sequence[str] | None = None,
    labels: Any = None,
    folder: str | Path | None = None,
) -> Images:
    """Pictures from any source, in a fixed order, none of them decoded yet.

    Files         "cat.jpg" or a Path; "folder/": the pictures in it by name (hidden files and other kinds of files are
                  left out), or, where it holds none itself, those of its sub-folders, with these as labels;
                  "holiday/*.jpg" (a pattern, ** crosses folders); "data.parquet" (columns `image` = encoded bytes, and
                  where present `label`, `name` = the label's class name, `box` = x0, y0, x1, y1 inclusive or `boxes`
                  = several, `mask` = encoded bytes of a grey picture, not 0 where the object is, `file`)
    Annotations   "instances_val.json" (COCO), "VOC2012/" (a folder with Annotations/), one VOC "cat.xml" (its pictures
                  in JPEGImages/, or beside it), "boxes.csv" (columns file, x0, y0, x1, y1 or xmin, ..., ymax or x, y,
                  w, h, label, mask): one picture a file and class present, named "<file>#<class>", with the boxes and
                  the mask of that class. `folder` says where the pictures lie if neither beside the file nor in images/
    Samples       "sample:coffee": the pictures that ship with the installed scikit-image
    Rendered      "planted:500" (or "planted:500@7", of seed 7; "planted:null:500@7", each with a null patch): scenes
                  whose evidence is known, with label, box and mask; see `xai.planted`. "concepts:500" (or
                  "concepts:500@7"): scenes of which every colour, texture, shape, object and part is known to the pixel
    Concepts      "broden1_224/" (a folder with index.csv and label.csv), or a COCO-Stuff folder (labels.txt, the pixel
                  maps in annotations/ or stuffthingmaps/, the pictures in images/)
    In memory     a PIL picture; a numpy array (h, w), (h, w, C), (C, h, w) with C <= 4, or a batch (n, ...) of the last
                  two; a torch tensor (h, w), (C, h, w), (n, C, h, w). bool, uint8, uint16, or float in [0, 1]
    Datasets      a map-style Dataset or a DataLoader that yields pictures, (picture, label) or mappings
    A list        of any of these; an Image or Images stays what it is

    `normalised=True` says that float arrays or tensors have passed the model's normalisation. `names` and `labels`
    (one a picture; a sequence, array or tensor) replace those of the source. In files and PIL pictures alpha is
    composited over white, colour profiles are passed over (as the loaders that networks are trained with do), of
    several frames or pages the first is taken; an array is taken as it is.

    Raises XaiError for a source that is not there or not of these kinds, and for arrays of other shapes or values; a
    picture that turns out bad later raises when it is indexed, and `good()` sorts it out. In a list of several, a bad
    one is such a picture too.

    >>> load_images("sample:coffee")[0].size
    (400, 600)
    """
    listing = _list(source, normalised, folder=folder)
    entries = listing.entries
    if names is not None:
        _check_count("names", len(names), len(entries))
        entries = tuple(replace(e, name=str(n)) for e, n in zip(entries, names, strict=True))
    if labels is not None:
        _check_count("labels", len(labels), len(entries))
        plain = (None if x is None else _label(x) for x in labels)
        entries = tuple(replace(e, label=x) for e, x in zip(entries, plain, strict=True))
    return Images(entries, listing.label_names)


def _list(source: Any, normalised: bool, first: int | None = None, folder: str | Path | None = None) -> Listing:
    if folder is not None and not isinstance(source, str | Path):
        raise error("With folder= the source", "the path of an annotation file", type(source).__name__, "Leave it out")
    if isinstance(source, Images):
        return _listing(source)
    if isinstance(source, Image):
        return _listing(Images.of([source]))
    if isinstance(source, str | Path | Pil.Image):
        if normalised:
            do = "Leave it out: the model normalises pictures itself"
            raise error("With normalised=True the source", "a float array or tensor", type(source).__name__, do)
        return list_pil(source, first) if isinstance(source, Pil.Image) else list_path(source, folder)
    if is_tensor(source) or isinstance(source, np.ndarray | np.generic):
        return list_array(source, normalised, first)
    if isinstance(source, list | tuple):
        return _list_many(source, normalised)
    indexed = hasattr(source, "__getitem__") and not isinstance(source, Mapping | bytes | bytearray)
    if indexed or hasattr(source, "collate_fn"):
        return list_dataset(source, normalised)
    expected = "a path, pattern, sample:NAME, array, tensor, PIL picture, Dataset, DataLoader or a list of these"
    do = "Pass list(source) for a generator, numpy.asarray(source) for other arrays"
    raise error("The source of pictures", expected, type(source).__name__, do)


def _list_many(sources: Sequence[Any], normalised: bool) -> Listing:
    """Each in turn; a pair (picture, integer) is a picture with its label."""
    if not sources:
        raise error("The list of pictures", "at least one long", "an empty list", "Name a picture")
    if len(sources) == 1:
        return _labelled(sources[0], normalised, None)
    parts: list[Listing] = []
    for source in sources:
        first = sum(len(p.entries) for p in parts)
        try:
            parts.append(_from(source, _labelled(source, normalised, first)))
        except XaiError as reason:
            if normalised:
                raise
            path = isinstance(source, str | Path)
            name = os.path.basename(os.fspath(source)) or os.fspath(source) if path else f"picture {first}"
            parts.append(Listing((broken(name, reason),)))
    return joined(parts)


def _from(source: Any, listing: Listing) -> Listing:
    """The listing with the path that was named on every entry."""
    if not isinstance(source, str | Path):
        return listing
    return replace(listing, entries=tuple(replace(e, source=os.fspath(source)) for e in listing.entries))


def _labelled(source: Any, normalised: bool, first: int | None) -> Listing:
    if not (isinstance(source, tuple) and len(source) == 2 and isinstance(plain_label(source[1]), int)):
        return _list(source, normalised, first)
    listing = _list(source[0], normalised, first)
    label = plain_label(source[1])
    return replace(listing, entries=tuple(replace(e, label=label) for e in listing.entries))


def _label(value: Any) -> Label:
    label = plain_label(value)
    if label is None:
        raise error("A label", "an integer or a string", repr(value), "Pass the class index or its name")
    return label


def _check_count(what: str, got: int, count: int) -> None:
    if got != count:
        raise error(what, f"{count} long, one a picture", got, "Pass one for each picture")


def _image(entry: Entry) -> Image:
    raw = entry.read()
    label = raw.label if entry.label is None else entry.label
    return Image.of(entry.name, raw.pixels, label=label, boxes=raw.boxes, mask=raw.mask, normalised=entry.normalised,
                    box_labels=raw.box_labels, difficult=raw.difficult, concepts=raw.concepts,
                    alpha=raw.alpha)  # fmt: skip


def _raw(image: Image) -> Raw:
    return Raw(image.pixels, image.label, image.boxes, image.mask, image.box_labels, image.difficult, image.concepts,
               image.alpha)


def _listing(images: Images) -> Listing:
    return Listing(images._entries, images.label_names)


def _images(listing: Listing) -> Images:
    return Images(listing.entries, listing.label_names)
