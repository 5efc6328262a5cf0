"""Pictures with boxes and masks from COCO JSON, VOC XML and CSV tables: one entry a picture and class that is present.

The three say the same here. An entry `<file>#<class>` holds the boxes and the mask of that class alone and has the
class as its label, as the pointing game explains every class that a picture shows. A picture without any object has no
class to explain and is left out. A bad row or object makes its entry a bad one, which tells file and place when it is
read; a picture that is not on disk likewise.

Coordinates become those of `Image.boxes`: pixels from 0, right and lower edges exclusive. Where EXIF says that a
picture is shown turned, the boxes count in the grid, stored or shown, whose width and height the annotation states;
where both fit or none is stated, COCO and VOC mean the stored pixels and a CSV table those shown. Nothing outside of
the folders named below is read, and nothing is run.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from xai.annotated import Group, Reader, Sheet, Size, Thing, below, clean, listing, named, stated_size
from xai.errors import XaiError, error
from xai.image_entries import Entry, Label, Listing, broken
from xai.image_files import SUFFIXES, stored
from xai.outlines import Mask, box_mask, is_number, segmentation_mask, short

FORMATS = (".json", ".xml", ".csv")
DO = "Pass COCO instances, a VOC folder, or a CSV table with a header"


def list_annotations(path: Path, read: Reader, folder: Path | None = None) -> Listing:
    """A file of one of FORMATS. `read` reads a picture file; pictures lie in `folder`, or where each format says.

    Raises XaiError for a file that cannot be read as what its ending says.
    """
    kind = path.suffix.lower()
    if kind == ".json":
        return _list_coco(path, read, folder)
    return _list_table(path, read, folder) if kind == ".csv" else list_voc([path], read, folder)


# COCO JSON: instances with `images`, `annotations` (bbox x, y, w, h; segmentation) and `categories`. A picture is
# looked for beside the JSON and one folder up, and there also in images/, SPLIT/ and images/SPLIT/
# (instances_SPLIT.json). The mask is the union of the class's segmentations; an object without one fills its box there.
# `iscrowd` objects are kept and marked difficult: their run lengths are part of the mask, and what counts single
# objects leaves them out.


def _list_coco(path: Path, read: Reader, folder: Path | None) -> Listing:
    data = _json(path)
    split = path.stem.rpartition("_")[2]
    near = [r / sub for r in (path.parent, path.parent.parent) for sub in ("", "images", split, f"images/{split}")]
    roots = tuple(near) if folder is None else (folder,)
    sheets: dict[Any, Sheet] = {}
    rows: dict[Any, list[tuple[int, Any]]] = {}
    odd: list[Entry] = []
    for i, image in enumerate(data["images"]):
        if _has(image, "id", "file_name"):
            size = stated_size(image.get("width"), image.get("height"))
            sheets[image["id"]] = Sheet(str(image["file_name"]), roots, size, named(path), stored=True)
        else:
            odd.append(_odd(f"picture {i}", path, "one with `id` and `file_name`", image))
    for i, one in enumerate(data["annotations"]):
        if _has(one, "image_id", "category_id") and one["image_id"] in sheets:
            rows.setdefault(one["image_id"], []).append((i, one))
        else:
            odd.append(_odd(f"annotation {i}", path, "one with a `category_id` and the `image_id` of a picture", one))
    classes = {c["id"]: clean(str(c["name"])) for c in _items(data.get("categories")) if _has(c, "id", "name")}
    found: Group = {}
    for key, sheet in sheets.items():  # in the order of the pictures
        _coco_picture(found, sheet, rows.get(key, []), classes)
    return listing(found, classes.values(), read, odd, named(path))


def _coco_picture(found: Group, sheet: Sheet, rows: Sequence[tuple[int, Any]], classes: Mapping[Any, str]) -> None:
    outlined = {one["category_id"] for _, one in rows if one.get("segmentation")}
    for i, one in rows:
        what, kind = f"annotation {i} in {sheet.source}", one["category_id"]
        try:
            if kind not in classes:
                raise error(f"The category_id of {what}", "one of its `categories`", short(kind),
                            "Add the category, or export the file again")
            thing: Thing | XaiError = _coco_thing(one, what, kind in outlined)
        except XaiError as reason:
            thing = reason
        found.setdefault((sheet, classes.get(kind, clean(f"category {kind}"))), []).append(thing)


def _coco_thing(one: Mapping[str, Any], what: str, outlined: bool) -> Thing:
    bbox, outline = one.get("bbox"), one.get("segmentation")
    difficult = bool(one.get("iscrowd"))
    if bbox is None and outline:
        return Thing(None, difficult, partial(_outline, outline, what))
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(is_number, bbox)) and min(bbox[2:]) > 0):
        raise error(f"The bbox of {what}", "x, y, width and height, the last two above 0", short(bbox),
                    "Correct it, or leave the annotation out")
    x, y, w, h = bbox
    box = (x, y, x + w, y + h)
    fill = partial(box_mask, np.array([box])) if outlined else None
    return Thing(box, difficult, partial(_outline, outline, what) if outline else fill)


def _outline(segmentation: Any, what: str, size: Size) -> Mask:
    return segmentation_mask(segmentation, size, what)


def _json(path: Path) -> Any:
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as cause:
        raise error(named(path), "a JSON file", f"one that cannot be read ({short(str(cause))})", DO) from cause
    if not (isinstance(data, dict) and all(isinstance(data.get(k), list) for k in ("images", "annotations"))):
        keys = ", ".join(clean(str(k)) for k in list(data)[:6]) if isinstance(data, dict) else ""
        raise error(named(path), "COCO JSON with the lists `images` and `annotations`",
                    f"one with {keys[:60] or 'no keys'}", DO)
    return data


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _has(value: Any, *keys: str) -> bool:
    """Whether it is a mapping with these keys, numbers or strings."""
    return isinstance(value, Mapping) and all(isinstance(value.get(k), int | str) for k in keys)


def _odd(name: str, path: Path, expected: str, got: Any) -> Entry:
    """A fault that belongs to no picture."""
    return broken(name, error(f"{named(path)}: {name}", expected, clean(short(got)), "Correct it, or leave it out"))


# VOC XML: one file a picture, in Annotations/ with the pictures in JPEGImages/ (or images/) beside that, or beside the
# picture itself. Corners are counted from 1, the last pixel included. Masks are read from SegmentationObject/ (the n-th
# object has the value n) or, without that, SegmentationClass/ (VOC's own twenty classes), where they hold the picture;
# a class of which they show nothing (void) fills its boxes. So some pictures have masks and others only boxes: the
# official pointing game on VOC07 takes the boxes of all.

VOC = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
       "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")


def list_voc(paths: Sequence[Path], read: Reader, folder: Path | None = None) -> Listing:
    """VOC annotations, one XML file a picture. A file that is none is one bad entry, or raises XaiError if alone."""
    found: Group = {}
    odd: list[Entry] = []
    for path in paths:
        try:
            _voc_picture(found, path, folder)
        except XaiError as reason:
            if len(paths) == 1:
                raise
            odd.append(broken(named(path), reason))
    source = named(paths[0]) if len(paths) == 1 else f"The folder of {named(paths[0])}"
    return listing(found, sorted({str(label) for _, label in found}), read, odd, source)


def is_voc(path: Path) -> bool:
    """Whether an XML file beside a picture looks like an annotation; it may hold anything else."""
    with path.open("rb") as stream:
        return b"<annotation" in stream.read(2048)


def _voc_picture(found: Group, path: Path, folder: Path | None) -> None:
    name = named(path)
    root = _xml(path, name)
    top = path.parent.parent
    inside = path.parent.name.lower() == "annotations"
    near = (top / "JPEGImages", top / "images", path.parent) if inside else (path.parent,)
    file = PurePosixPath((root.findtext("filename") or "").strip().replace("\\", "/")).name
    others = tuple(path.stem + s for s in sorted(SUFFIXES))
    size = stated_size(*(_number(root.findtext(f"size/{k}")) for k in ("width", "height")))
    sheet = Sheet(file or path.stem, near if folder is None else (folder,), size, name, stored=True, others=others)
    objects = [(f"object {i + 1} in {name}", one) for i, one in enumerate(root.findall("object"))]
    kinds = [clean((one.findtext("name") or "").strip()) for _, one in objects]
    boxes: dict[str, list[int]] = {}
    for i, kind in enumerate(kinds):
        boxes.setdefault(kind, []).append(i)
    for kind, members in boxes.items():
        things = [_voc_thing(*objects[i]) for i in members]
        good = [t for t in things if isinstance(t, Thing)]
        mask = _voc_mask(top, path.stem, kind, members, good) if inside and good else None
        if mask is not None:
            things = [Thing(t.box, t.difficult, mask if t is good[0] else None) if isinstance(t, Thing) else t
                      for t in things]
        found.setdefault((sheet, kind or "no name"), []).extend(things)


def _voc_thing(what: str, one: Element) -> Thing | XaiError:
    if not (one.findtext("name") or "").strip():
        return error(f"The {what}", "one with a `name`", "none", "Name its class, or leave it out")
    x0, y0, x1, y1 = (_number(one.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
    if x0 is None or y0 is None or x1 is None or y1 is None or x1 < x0 or y1 < y0:
        got = ", ".join("none" if v is None else f"{v:g}" for v in (x0, y0, x1, y1))
        return error(f"The bndbox of {what}", "xmin <= xmax and ymin <= ymax in pixels", got, "Correct it")
    return Thing((x0 - 1, y0 - 1, x1, y1), (one.findtext("difficult") or "").strip() in ("1", "true"))


def _voc_mask(top: Path, stem: str, kind: str, members: Sequence[int],
              things: Sequence[Thing]) -> Callable[[Size], Mask] | None:
    boxes = np.array([t.box for t in things], dtype=np.float64)
    by_object, by_class = (top / f"Segmentation{k}" / f"{stem}.png" for k in ("Object", "Class"))
    if by_object.is_file():
        return partial(_valued, by_object, [i + 1 for i in members], boxes)
    return partial(_valued, by_class, [VOC.index(kind) + 1], boxes) if kind in VOC and by_class.is_file() else None


def _valued(path: Path, values: Sequence[int], boxes: Any, size: Size) -> Mask:
    mask = np.isin(_labels_of(path, size), values)
    return mask if mask.any() else box_mask(boxes, size)


def _xml(path: Path, name: str) -> Element:
    """The root of a VOC file. A document type is refused, so that no entity can be defined, expanded or fetched."""
    tree, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise error(name, "XML without a document type", "one that declares a DOCTYPE", "Delete that declaration")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = tree.start
    parser.EndElementHandler = tree.end
    parser.CharacterDataHandler = tree.data
    try:
        parser.Parse(path.read_bytes(), True)
    except (expat.ExpatError, ValueError, LookupError) as cause:  # the latter for an encoding that is not known
        raise error(name, "an XML file", f"one that cannot be read ({short(str(cause))})", "Write it again") from cause
    root = tree.close()
    if root.tag != "annotation":
        raise error(name, "VOC XML with the root `annotation`", f"the root {short(root.tag)}", DO)
    return root


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if is_number(value) else None


# CSV: one object a row below a header, separated by comma, semicolon or tab. Files lie beside the table or in images/
# there. A box is x0, y0, x1, y1 or xmin, ..., ymax: edges, so that x1 - x0 is the width; or x, y, w, h. Beside corners
# `width` and `height` are the picture's. Labels are class numbers where all are whole numbers; without such a column
# the first sub-folder is the class, as in a folder of classes. In the mask's file, what is not 0 is the object.

FILE = ("file", "path", "image", "filename", "file_name", "image_path")
BOXES = (("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"), ("x", "y", "w", "h"),
         ("x", "y", "width", "height"))  # fmt: skip
LABEL, MASK = ("label", "class", "class_name", "category"), ("mask", "mask_path", "mask_file")


def _list_table(path: Path, read: Reader, folder: Path | None) -> Listing:
    header, lines = _table(path)
    roots = (path.parent, path.parent / "images") if folder is None else (folder,)
    file, kind, mask = (next((n for n in known if n in header), "") for known in (FILE, LABEL, MASK))
    if not file or len(set(header)) < len(header):
        raise error(named(path), f"a table with different columns, one of them {', '.join(FILE[:3])}",
                    f"the header {short(','.join(header))}", "Write the columns' names into the first line")
    names = next((c for c in BOXES if set(c) <= set(header)), ())
    odd: list[Entry] = []
    rows: list[tuple[str, dict[str, str]]] = []
    for line, cells in lines:
        what, row = f"{named(path)}, line {line}", dict(zip(header, cells, strict=False))
        if len(cells) != len(header) or not row[file]:
            odd.append(broken(f"line {line}", error(what, f"{len(header)} cells, with a file name",
                                                    short(",".join(cells)), "Correct the row")))
        else:
            rows.append((what, row))
    labels = _labels([r[kind] for _, r in rows]) if kind else _folders([r[file] for _, r in rows])
    found: Group = {}
    for (what, row), label in zip(rows, labels, strict=True):
        width, height = ("" if k in names else row.get(k, "") for k in ("width", "height"))
        sheet = Sheet(row[file], roots, stated_size(_number(width), _number(height)), named(path), stored=False)
        try:
            thing: Thing | XaiError = _row(row, names, row.get(mask, ""), roots, what)
        except XaiError as reason:
            thing = reason
        found.setdefault((sheet, label), []).append(thing)
    return listing(found, sorted({x for x in labels if isinstance(x, str)}), read, odd, named(path))


def _row(row: Mapping[str, str], names: Sequence[str], mask: str, roots: tuple[Path, ...], what: str) -> Thing:
    box = None
    if any(row[n] for n in names):
        a, b, c, d = (_number(row[n]) for n in names)
        sized = names[0] == "x"
        if a is None or b is None or c is None or d is None or c <= (0 if sized else a) or d <= (0 if sized else b):
            expected = "numbers, w and h above 0" if sized else "numbers with x0 < x1 and y0 < y1"
            raise error(f"{what}: the box", expected, short(", ".join(row[n] for n in names)), "Correct the row")
        box = (a, b, a + c, b + d) if sized else (a, b, c, d)
    difficult = row.get("difficult", "").lower() in ("1", "true", "yes")
    return Thing(box, difficult, partial(_mask_file, roots, mask, what) if mask else None)


def _mask_file(roots: tuple[Path, ...], file: str, what: str, size: Size) -> Mask:
    path = below(roots, file, f"{what}: the mask")
    if path is None:
        raise error(f"{what}: the mask", "on disk", f"no file {file!r}", "Write the path relative to the table")
    return np.asarray(_labels_of(path, size) != 0)


def _labels_of(path: Path, size: Size) -> np.ndarray:
    """(h, w) numbers of a picture of labels; of a picture in colour, 1 where a channel is not 0 and alpha neither."""
    try:
        with path.open("rb") as stream:
            values = stored(stream, named(path))
    except OSError as cause:
        got = f"the answer {cause.strerror or cause}"
        raise error(named(path), "a readable file", got, "Check the file") from cause
    if values.shape[:2] != size:
        raise error(f"The mask {named(path)}", f"{size[1]} x {size[0]} pixels, as its picture",
                    f"{values.shape[1]} x {values.shape[0]}", "Resize it to its picture, without smoothing")
    if values.ndim == 2:
        return values
    opaque = values[..., -1] != 0 if values.shape[2] in (2, 4) else np.ones(size, dtype=bool)
    return np.asarray(values[..., : 1 if values.shape[2] < 3 else 3].any(axis=2) & opaque)


def _labels(texts: Sequence[str]) -> list[Label]:
    numbers = all(re.fullmatch(r"\d{1,9}", t) for t in texts if t)
    return [None if not t else int(t) if numbers else t for t in texts]


def _folders(files: Sequence[str]) -> list[Label]:
    """The first folder below the one that all share; no class where a file lies in that one itself."""
    parents = [PurePosixPath(f.replace("\\", "/")).parent.parts for f in files]
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*parents, strict=False)))
    split = bool(parents) and all(len(p) > shared for p in parents)
    return [p[shared] if split else None for p in parents]


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Column names in lower case, and (line number, cells) of each row that is not empty."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        first = text.partition("\n")[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
        header = [c.strip().lower() for c in next(reader, [])]
        rows = [(reader.line_num, [c.strip() for c in row]) for row in reader if any(c.strip() for c in row)]
    except (UnicodeDecodeError, csv.Error) as cause:
        raise error(named(path), "a CSV table in UTF-8", f"one that cannot be read ({short(str(cause))})",
                    "Save it again as CSV, UTF-8") from cause
    return header, rows
