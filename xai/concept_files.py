"""Pixel-labelled data sets that lie on disk: Broden (Bau et al. 2017) and COCO-Stuff (Caesar et al. 2018).

Neither is shipped or downloaded. A folder is told by what it holds, and a picture whose files are damaged becomes an
entry that tells so when it is read.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xai.annotated import Reader, below, named
from xai.concept_maps import NONE, Concept, ConceptMaps
from xai.errors import error
from xai.image_entries import Entry, Listing, Raw, broken
from xai.image_files import SUFFIXES, stored

UNLABELLED = 255  # of COCO-Stuff's maps
THINGS = 91  # COCO-Stuff's numbers below this are things, the others stuff


def list_concept_folder(folder: Path, read: Reader) -> Listing | None:
    """The pictures of a Broden or COCO-Stuff folder; None where it is neither. Raises XaiError where its lists are
    damaged."""
    if (folder / "index.csv").is_file() and (folder / "label.csv").is_file():
        return _list_broden(folder, read)
    maps = next((folder / name for name in ("stuffthingmaps", "annotations", "pixelmaps")
                 if (folder / name).is_dir()), None)
    return _list_coco_stuff(folder, maps, read) if maps is not None and (folder / "labels.txt").is_file() else None


# Broden: index.csv has a line a picture: `image`, below images/, and a column for each category with what is there, ";"
# between: pictures below images/ whose pixels hold label numbers as red + 256 * green, or a number, which is true of
# the whole picture. An empty cell: nobody looked. label.csv: number, name, category as "object(120);part(3)", of which
# the one with the largest count is the label's own. 0 is no label.
@dataclass(frozen=True)
class Broden:
    """Reads one picture: its file and, a category each, what its columns say."""

    folder: Path
    reader: Reader
    concepts: tuple[Concept, ...]
    numbers: Mapping[int, int]  # from label.csv's to ours
    file: str
    cells: tuple[tuple[str, str], ...]

    def __call__(self) -> Raw:
        """Raises XaiError where a file is missing or damaged, or a number is no label."""
        images = (self.folder / "images",)
        raw = self.reader(_existing(images, self.file, "index.csv"), Path(self.file).name)
        planes, whole = [], list[int]()
        for category, cell in self.cells:
            for one in cell.split(";"):
                if one.strip().isdigit():
                    whole += [self._number(int(one), f"{category} of {self.file}")] if int(one) else []
                else:
                    path = _existing(images, one.strip(), f"index.csv, {category} of {self.file}")
                    planes.append(self._plane(path))
        if len({plane.shape for plane in planes}) > 1:
            raise error(f"the maps of {self.file}", "of one size", ", ".join(str(p.shape) for p in planes),
                        "Get this picture again")
        stack = np.stack(planes) if planes else np.full((0, 1, 1), NONE, np.int32)
        return Raw(raw.pixels, concepts=ConceptMaps(self.concepts, stack, tuple(dict.fromkeys(whole))))

    def _plane(self, path: Path) -> npt.NDArray[np.int32]:
        values = _values(path)
        if values.ndim != 3 or values.shape[2] < 2:
            raise error(named(path), "a map in colour, numbers as red + 256 * green",
                        "one in grey", "Get this picture again")
        labels = values[..., 0].astype(np.int64) + 256 * values[..., 1].astype(np.int64)
        found, place = np.unique(labels, return_inverse=True)
        ours = [NONE if k == 0 else self._number(int(k), named(path)) for k in found]
        return np.array(ours, dtype=np.int32)[place].reshape(labels.shape)

    def _number(self, label: int, where: str) -> int:
        if label not in self.numbers:
            raise error(f"{where}: a label", "one of the numbers in label.csv", label, "Get both from one release")
        return self.numbers[label]


def _list_broden(folder: Path, read: Reader) -> Listing:
    concepts, numbers = list[Concept](), dict[int, int]()
    for line, row in _table(folder / "label.csv", ("number", "name", "category")):
        if not row["number"].isdigit():
            raise error(f"label.csv, line {line}: the number", "a whole number", repr(row["number"]),
                        "Get the file again")
        if int(row["number"]):
            numbers[int(row["number"])] = len(concepts)
            concepts.append((_primary(row["category"]), row["name"]))
    entries = []
    for line, row in _table(folder / "index.csv", ("image",)):
        columns = {name for name, _ in concepts}
        cells = tuple((name, cell) for name, cell in row.items() if name in columns and cell)
        one = Broden(folder, read, tuple(concepts), numbers, row["image"], cells)
        entries.append(Entry(row["image"] or f"line {line}", one))
    if not entries:
        raise error("index.csv", "a list of pictures", "one without a line", "Get the file again")
    return Listing(tuple(entries))


def _primary(text: str) -> str:
    """Of "object(120);part(3)" the category with the largest number."""
    found = [(int(count or 0), name) for name, count in re.findall(r"([^;()]+)(?:\((\d+)\))?", text)]
    return max(found, key=lambda one: one[0])[1].strip() if found else "other"


def _table(path: Path, wanted: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of a CSV file that has these columns."""
    try:
        reader = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as cause:
        raise error(named(path), "a CSV table in UTF-8", f"one that cannot be read ({cause})",
                    "Get the file again") from cause
    header = reader.fieldnames or []
    if missing := [name for name in wanted if name not in header]:
        raise error(named(path), f"a table with the columns {', '.join(wanted)}", f"one without {', '.join(missing)}",
                    "Get the file again")
    whole: list[tuple[int, dict[str, str]]] = []
    for line, row in rows:
        if None in row or None in row.values():
            raise error(f"{named(path)}, line {line}", f"{len(header)} cells", "another number", "Get the file again")
        whole.append((line, {str(name): str(cell).strip() for name, cell in row.items()}))
    return whole


# COCO-Stuff: labels.txt says "1: person" a line; a map is a grey PNG of label - 1, 255 where nothing is labelled. The
# picture of annotations/train2017/x.png is images/train2017/x.jpg, or train2017/x.jpg, or one of that name in images/.
@dataclass(frozen=True)
class Stuff:
    """Reads one picture and its map."""

    picture: Path
    map: Path
    reader: Reader
    concepts: tuple[Concept, ...]

    def __call__(self) -> Raw:
        """Raises XaiError where a file is damaged, the map is no grey picture or a number is no label."""
        raw = self.reader(self.picture, named(self.picture))
        values = _values(self.map)
        if values.ndim != 2 or values.shape != raw.pixels.shape[1:]:
            got = " x ".join(map(str, values.shape))
            raise error(f"the map {named(self.map)}", f"grey, of {raw.pixels.shape[1]} x {raw.pixels.shape[2]} pixels "
                        "as its picture", got, "Take the map that belongs to it")
        plane = np.where(values == UNLABELLED, NONE, values.astype(np.int32))
        if int(plane.max()) >= len(self.concepts):
            raise error(f"a number in {named(self.map)}", f"from 0 to {len(self.concepts) - 1}, or {UNLABELLED}",
                        int(plane.max()), "Take the labels.txt that belongs to the maps")
        return Raw(raw.pixels, concepts=ConceptMaps(self.concepts, plane[None], (), ("thing", "stuff")))


def _list_coco_stuff(folder: Path, maps: Path, read: Reader) -> Listing:
    concepts, entries = _stuff_labels(folder / "labels.txt"), list[Entry]()
    pictures = {p.stem: p for p in sorted((folder / "images").rglob("*")) if p.suffix.lower() in SUFFIXES}
    for path in sorted(maps.rglob("*.png")):
        near = folder / path.parent.relative_to(maps)
        beside = next((p for p in (near / f"{path.stem}{s}" for s in (".jpg", ".png", ".jpeg")) if p.is_file()), None)
        picture = pictures.get(path.stem) or beside
        if picture is None:
            entries.append(broken(named(path), error(f"the picture of {named(path)}", "on disk, in images/",
                                                     "none of that name", "Put it there")))
        else:
            entries.append(Entry(named(picture), Stuff(picture, path, read, concepts)))
    if not entries:
        raise error(f"{maps.name}/", "a folder of PNG maps", "one without any", "Unpack the maps there")
    return Listing(tuple(entries))


def _stuff_labels(path: Path) -> tuple[Concept, ...]:
    """Concepts by the numbers of the maps, which are those of the file less one."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as cause:
        raise error("labels.txt", "text in UTF-8", "something else", "Get the file again") from cause
    found = [re.fullmatch(r"(\d{1,5})\s*:\s*(.+)", line) for line in lines]
    if not lines or not all(found):
        odd = next((line for line, one in zip(lines, found, strict=True) if one is None), "no line")
        raise error("labels.txt", "lines as `1: person`", repr(odd[:40]), "Get the file again")
    names: dict[int, str] = {int(one[1]) - 1: one[2] for one in found if one is not None and int(one[1])}
    return tuple(("thing" if k < THINGS else "stuff", names.get(k, f"label {k + 1}")) for k in range(max(names) + 1))


def _existing(roots: tuple[Path, ...], file: str, what: str) -> Path:
    path = below(roots, file, f"A file in {what}")
    if path is None:
        raise error(f"{what}: {file}", "on disk", "no such file", "Get it again")
    return path


def _values(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            return stored(stream, named(path))
    except OSError as cause:
        raise error(named(path), "a readable file", f"the answer {cause.strerror or cause}",
                    "Check the file") from cause


