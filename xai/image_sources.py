"""Where pictures come from: what a path, folder, pattern, sample name, Parquet file, array or Dataset holds, in order.

Everything here lists; nothing decodes a picture before its entry is read.
"""

from __future__ import annotations

import glob
import importlib.util
import io
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pil

from xai.annotations import FORMATS, is_voc, list_annotations, list_voc
from xai.concept_files import list_concept_folder
from xai.concept_scenes import list_concepts
from xai.errors import XaiError, did_you_mean, error
from xai.image_arrays import Array, as_stack, is_tensor, picture
from xai.image_entries import Entry, Label, Listing, Raw, joined, plain_label
from xai.image_files import SUFFIXES, decode, decode_pil, has_alpha, stored
from xai.outlines import as_boxes
from xai.scenes import asked, list_scenes

MANY_CLASSES = 100_000  # beyond this a `label` column is no class index


# Files and folders
def list_path(source: str | Path, folder: str | Path | None = None) -> Listing:
    """A picture file, a folder, a glob pattern, a Parquet file, annotations (COCO, VOC, CSV; their pictures in `folder`
    where that is given) `sample:NAME`, `planted:COUNT@SEED` or `concepts:COUNT@SEED`. Raises XaiError if absent."""
    text = os.fspath(source)
    if isinstance(source, str) and text.startswith("sample:"):
        return _list_sample(text.removeprefix("sample:"))
    if isinstance(source, str) and text.startswith("planted:"):
        return list_scenes(*asked(text.removeprefix("planted:")))
    if isinstance(source, str) and text.startswith("concepts:"):
        return list_concepts(text.removeprefix("concepts:"))
    if "://" in text:
        raise error("A picture", "a file on this machine", repr(text), "Download it first and pass the file")
    path = Path(text).expanduser()
    try:
        if folder is not None:
            return _list_annotated(path, Path(folder).expanduser())
        if text and path.is_dir():
            return _list_folder(path)
        if text and path.is_file():
            return _list_file(path)
        if glob.has_magic(text) and not path.exists():
            return _list_pattern(str(path))
    except PermissionError as cause:
        raise _forbidden(path.name) from cause
    except OSError as cause:  # a name that the system cannot look up: too long, a dead network drive
        got = f"{text[:80]!r} ({cause.strerror or cause})"
        raise error("A picture", "an existing file", got, "Check the name") from cause
    raise _missing(path, text)


def _list_file(path: Path) -> Listing:
    if path.suffix.lower() in (".parquet", ".pq"):
        return _list_parquet(path)
    if path.suffix.lower() in FORMATS:
        return list_annotations(path, _read_file)
    return Listing((_file_entry(path),))


def _list_annotated(path: Path, folder: Path) -> Listing:
    """Annotations whose pictures lie in a folder that is named."""
    if not folder.is_dir():
        raise error("folder", "an existing folder of pictures", repr(str(folder)), "Check the spelling")
    sheets = _voc_in(path) if path.is_dir() else []
    if sheets:
        return list_voc(sheets, _read_file, folder)
    if not (path.is_file() and path.suffix.lower() in FORMATS):
        raise error("With folder= the source", "an existing COCO JSON, VOC XML or CSV file, or a VOC folder",
                    repr(str(path)), "Leave out folder= for pictures without annotations")  # fmt: skip
    return list_annotations(path, _read_file, folder)


def _voc_in(folder: Path) -> list[Path]:
    """The XML files of a VOC folder: those in its Annotations/, or else those directly in it, by name."""
    inner = folder / "Annotations"
    return [p for p in sorted((inner if inner.is_dir() else folder).glob("*.xml")) if not p.name.startswith(".")]


def _file_entry(path: Path, label: Label = None) -> Entry:
    name = os.fsencode(path.name).decode("utf-8", "replace")  # a name with stray bytes must not break the record
    return Entry(name, partial(_read_file, path, name), label)


def _read_file(path: Path, name: str) -> Raw:
    try:
        with path.open("rb") as stream:
            return Raw(decode(stream, name), alpha=has_alpha(stream, name))
    except PermissionError as cause:
        raise _forbidden(name) from cause
    except OSError as cause:
        raise error(name, "a readable file", f"the answer {cause.strerror or cause}", "Check the file") from cause


def _pictures_in(folder: Path) -> list[Path]:
    """Picture files directly in a folder, by name; hidden ones and other kinds of files are left out."""
    with os.scandir(folder) as found:
        names = sorted(f.name for f in found if not f.name.startswith(".") and f.is_file())
    return [folder / n for n in names if Path(n).suffix.lower() in SUFFIXES]


def _folders_in(folder: Path) -> list[Path]:
    with os.scandir(folder) as found:
        return [folder / n for n in sorted(f.name for f in found if not f.name.startswith((".", "__")) and f.is_dir())]


def _list_folder(folder: Path) -> Listing:
    """The annotated pictures of a VOC folder; the pictures that lie directly in it (those with an XML beside them as
    that says); where there are none, those of its sub-folders, labelled by them."""
    if listing := list_concept_folder(folder, _read_file):
        return listing
    direct, sheets = _pictures_in(folder), _voc_in(folder)
    stems = {p.stem for p in direct}
    if sheets and (not direct or (folder / "Annotations").is_dir()):
        return list_voc(sheets, _read_file)
    if beside := [p for p in sheets if p.stem in stems and is_voc(p)]:
        told = {p.stem for p in beside}
        plain = Listing(tuple(_file_entry(p) for p in direct if p.stem not in told))
        annotated = list_voc(beside, _read_file)
        return Listing(annotated.entries + plain.entries, annotated.label_names)
    if direct:
        return Listing(tuple(_file_entry(p) for p in direct))
    entries: list[Entry] = []
    classes: list[str] = []
    for kind in _folders_in(folder):
        found = [p for where, _, _ in sorted(os.walk(kind)) for p in _pictures_in(Path(where))]
        if found:
            classes.append(kind.name)
            entries += [_file_entry(p, kind.name) for p in found]
    if not entries:
        tables = len(list(folder.glob("*.parquet")))
        got = f"a folder with {tables} Parquet files" if tables else "a folder without pictures"
        do = "Name one of them" if tables else f"Put pictures into it ({', '.join(sorted(SUFFIXES)[:4])}, ...)"
        raise error(f"{folder.name or folder}", "a folder of pictures", got, do)
    return Listing(tuple(entries), tuple(classes))


def _list_pattern(pattern: str) -> Listing:
    found = [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
    kinds = SUFFIXES | {".parquet", ".pq", *(k for k in FORMATS if pattern.lower().endswith(k))}
    wanted = [p for p in found if p.is_file() and p.suffix.lower() in kinds]
    if not wanted:
        got = f"{len(found)} matches, none of them a picture" if found else "no match"
        raise error(f"The pattern {pattern!r}", "one that matches pictures", got, "Check it, and quote it in the shell")
    return joined([_list_file(p) for p in wanted])


def _missing(path: Path, text: str) -> XaiError:
    folder = path.parent
    if text and path.exists():
        return error("A picture", "an ordinary file or a folder", f"the device or pipe {text!r}", "Write it to a file")
    if text and not folder.is_dir():
        return error("A picture", "an existing file", repr(text), f"There is no folder {str(folder)!r}")
    try:
        near = did_you_mean(path.name, os.listdir(folder)) if text else ""
    except OSError:  # a folder that may be entered but not listed: the sentence goes without near names
        near = ""
    return error("A picture", "an existing file", repr(text), near or "Check the spelling and the folder")


def _forbidden(name: str) -> XaiError:
    return error(name, "readable", "permission denied", "Change its permissions or copy it to a place of yours")


def sample_folder() -> Path:
    """Where the installed scikit-image keeps the pictures that ship in its wheel; nothing is imported or downloaded."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise error("sample:NAME", "a picture of scikit-image", "no scikit-image here", "pip install scikit-image")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def _list_sample(name: str) -> Listing:
    known = {p.stem: p for p in _pictures_in(sample_folder()) if p.suffix in (".png", ".jpg")}
    if name not in known:
        near = did_you_mean(name, known)
        raise error(f"sample:{name}", f"one of {', '.join(known)}", name or "no name", near or "Choose one of these")
    return Listing((Entry(name, partial(_read_file, known[name], name)),))


# Parquet


@dataclass(frozen=True)
class Rows:
    """The rows of one Parquet file; the row group read last is kept, so that reading in order reads each once."""

    path: Path
    _last: list[Any] = field(default_factory=list, compare=False, repr=False)
    _lock: Any = field(default_factory=threading.Lock, compare=False, repr=False)

    def __reduce__(self) -> tuple[type[Rows], tuple[Path]]:
        return Rows, (self.path,)

    def read(self, row: int, name: str) -> Raw:
        """Row `row`: picture and mask bytes decoded, boxes with exclusive right and lower edges."""
        with self._lock:
            values = self._row(row)
        content = values["image"]["bytes"] if isinstance(values["image"], Mapping) else values["image"]
        if content is None:
            raise error(name, "a picture", f"an empty `image` in row {row}", "Leave the row out")
        boxes = _boxes(values.get("box") if values.get("boxes") is None else values["boxes"], name)
        mask = values.get("mask")
        pixels = decode(io.BytesIO(content), name)
        mask = _mask(mask["bytes"] if isinstance(mask, Mapping) else mask, name, pixels.shape[1:])
        return Raw(pixels, boxes=boxes, mask=mask)

    def _row(self, row: int) -> dict[str, Any]:
        import pyarrow.parquet as pq

        if not self._last or not self._last[0] <= row < self._last[0] + self._last[1].num_rows:
            with pq.ParquetFile(self.path) as file:
                start = 0
                for group in range(file.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    if row < start + count:
                        wanted = [c for c in ("image", "box", "boxes", "mask") if c in file.schema_arrow.names]
                        self._last[:] = [start, file.read_row_group(group, columns=wanted)]
                        break
                    start += count
        values: dict[str, Any] = self._last[1].slice(row - self._last[0], 1).to_pylist()[0]
        return values


def _boxes(box: Sequence[Any] | None, name: str) -> npt.NDArray[np.float32] | None:
    """Inclusive corners x0, y0, x1, y1 (one box, or a list of them) as (k, 4) with exclusive x1, y1."""
    if box is None:
        return None
    boxes = as_boxes(box, f"The box of {name}")
    boxes[:, 2:] += 1
    return boxes


def _mask(content: bytes | None, name: str, size: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
    """A picture file of one channel: what is not 0 is the object."""
    if content is None:
        return None
    values = stored(io.BytesIO(content), f"The mask of {name}")
    if values.ndim != 2:
        raise error(f"The mask of {name}", "grey, one channel", f"{values.shape[2]} channels", "Save it as a grey PNG")
    if values.shape != size:
        got, do = f"{values.shape[1]} x {values.shape[0]}", "Resize it to its picture, without smoothing"
        raise error(f"The mask of {name}", f"{size[1]} x {size[0]} pixels, as its picture", got, do)
    return np.asarray(values != 0)


def _list_parquet(path: Path) -> Listing:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            count = file.metadata.num_rows
            wanted = [c for c in ("label", "name", "wnid", "file") if c in columns]
            table = file.read(columns=wanted).to_pydict()
    except (pa.ArrowException, OSError) as cause:
        got = f"one that cannot be read ({' '.join(str(cause).split())})"
        raise error(path.name, "a Parquet file", got, "Copy or write it again") from cause
    if "image" not in columns or not count:
        got = f"{count} rows with the columns {', '.join(columns)}"
        raise error(path.name, "a Parquet file with pictures in the column `image`", got, "Rename the column")
    names = [str(n) for n in table["file"]] if "file" in table else [f"row {i}" for i in range(count)]
    labels = table.get("label") or table.get("wnid") or table.get("name") or [None] * count
    rows = Rows(path)
    entries = (Entry(n, partial(rows.read, i, n), x) for i, (n, x) in enumerate(zip(names, labels, strict=True)))
    return Listing(tuple(entries), _class_names(table))


def _class_names(table: Mapping[str, list[Any]]) -> tuple[str, ...] | None:
    """Names by class index, where `label` counts classes from 0 and `name` says what each is called."""
    labels, names = table.get("label"), table.get("name")
    if not labels or not names or not all(isinstance(i, int) and 0 <= i < MANY_CLASSES for i in labels):
        return None
    known = dict(zip(labels, names, strict=True))
    return tuple(str(known.get(i, f"class {i}")) for i in range(max(labels) + 1))


# What lies in memory


def list_array(value: Any, normalised: bool, first: int | None = None) -> Listing:
    """A numpy array or torch tensor of one or many pictures; `first` numbers the names where it is one of a list."""
    stack = as_stack(value, "The tensor" if is_tensor(value) else "The array", normalised)
    alone = first is None and len(stack) == 1
    names = ["picture"] if alone else [f"picture {i + (first or 0)}" for i in range(len(stack))]
    reads = [partial(_read_array, stack, i, normalised) for i in range(len(stack))]
    return Listing(tuple(Entry(n, r, None, normalised) for n, r in zip(names, reads, strict=True)))


def _read_array(stack: Array, i: int, normalised: bool) -> Raw:
    return Raw(picture(stack, i, normalised))


def list_pil(value: Pil.Image, first: int | None = None) -> Listing:
    """A PIL picture under its file's name where it has one."""
    name = Path(str(getattr(value, "filename", ""))).name or ("picture" if first is None else f"picture {first}")
    return Listing((Entry(name, partial(_read_pil, value, name)),))


def _read_pil(value: Pil.Image, name: str) -> Raw:
    return Raw(decode_pil(value, name))


def list_dataset(source: Any, normalised: bool) -> Listing:
    """A map-style Dataset (anything with a length and an index), or a DataLoader over one.

    An item is a picture, a pair that starts with (picture, label), or a mapping with `image` and perhaps `label`,
    `boxes` (k, 4) and `mask` (h, w). A label is an integer or a string; anything else in its place is passed over. A
    DataLoader gives the order (drawn once) and the collate function, which is called with one item at a time.
    """
    kind = type(source).__name__
    loader = hasattr(source, "dataset") and hasattr(source, "collate_fn")
    dataset = source.dataset if loader else source
    stream = any(c.__name__ == "IterableDataset" for c in type(dataset).__mro__)  # torch's; it inherits an empty index
    if stream or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        do = "Pass list(itertools.islice(source, count)) to read the first pictures of a stream"
        raise error("A Dataset", "one with a length and an index", f"a {kind} that can only be walked", do)
    order = _loader_order(source) if loader else range(len(dataset))
    if not len(order):
        raise error("A Dataset", "one with pictures", f"an empty {kind}", "Check how it was made")
    collate = source.collate_fn if loader else None
    batched = loader and source.batch_sampler is not None
    read = partial(_read_item, dataset, collate, batched, normalised)
    entries = (Entry(f"item {i}", partial(read, i), None, normalised) for i in order)
    return Listing(tuple(entries), _dataset_classes(dataset))


def _dataset_classes(dataset: Any) -> tuple[str, ...] | None:
    """`classes` as torchvision's Datasets have it, also below a Subset."""
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, list | tuple) and classes and all(isinstance(c, str) for c in classes):
        return tuple(classes)
    return None


def _loader_order(loader: Any) -> list[int]:
    if loader.batch_sampler is None:
        return [int(i) for i in loader.sampler]
    return [int(i) for batch in loader.batch_sampler for i in batch]


def _read_item(dataset: Any, collate: Any, batched: bool, normalised: bool, i: int) -> Raw:
    what = f"Item {i} of the {type(dataset).__name__}"
    try:
        item = dataset[i]
        if collate is not None:
            item = collate([item] if batched else item)
    except Exception as cause:  # the user's own code: any failure there is told as a failure of this item
        got = f"{type(cause).__name__}: {cause}"
        raise error(what, "readable", got, f"Try dataset[{i}] in Python to see where it fails") from cause
    if isinstance(item, Mapping):
        image = next((item[k] for k in ("image", "img", "pixel_values") if k in item), None)
        label = next((item[k] for k in ("label", "labels") if k in item), None)
        return _with_targets(_read_value(image, what, normalised), label, item.get("boxes"), item.get("mask"), batched)
    if isinstance(item, tuple | list) and len(item):
        label = item[1] if len(item) > 1 else None
        return _with_targets(_read_value(item[0], what, normalised), label, None, None, batched)
    return _read_value(item, what, normalised)


def _read_value(value: Any, what: str, normalised: bool) -> Raw:
    """One picture in memory, whatever its type."""
    if isinstance(value, Pil.Image):
        if normalised:
            raise error(what, "a float array when normalised=True", "a PIL picture", "Leave out normalised=True")
        return Raw(decode_pil(value, what))
    if not (is_tensor(value) or isinstance(value, np.ndarray)):
        do = "Let the Dataset yield pictures or (picture, label)"
        raise error(what, "an array, a tensor or a PIL picture", type(value).__name__, do)
    stack = as_stack(value, what, normalised)
    if len(stack) != 1:
        raise error(what, "one picture", f"{len(stack)} pictures", "Let the Dataset yield them one by one")
    return Raw(picture(stack, 0, normalised))


def _with_targets(raw: Raw, label: Any, boxes: Any, mask: Any, batched: bool) -> Raw:
    boxes, mask = (None if v is None else np.asarray(v)[0] if batched else np.asarray(v) for v in (boxes, mask))
    return replace(
        raw,
        label=plain_label(label[0] if batched and not isinstance(label, str | Mapping | None) else label),
        boxes=None if boxes is None else boxes.astype(np.float32).reshape(-1, 4),
        mask=None if mask is None else mask.astype(bool),
    )
