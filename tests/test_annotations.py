"""Boxes and masks from COCO, VOC, CSV and Parquet: formats, classes, EXIF, bad rows, where they lie in the input."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image as Pil
from torch import nn

import xai
from xai.batch import Batch
from xai.errors import XaiError
from xai.images import Image, Images, load_images
from xai.model import Model
from xai.outlines import box_mask, fill_polygon, run_lengths, run_mask, segmentation_mask
from xai.preprocessing import Frame, Preprocessing

Array = npt.NDArray[Any]
SHARED = Path(__file__).parents[1] / ".." / "shared"
H, W = 30, 50  # of the test picture, the object in its lower right corner
BOX = (34, 21, 48, 29)  # x0, y0, x1, y1 exclusive


def corner(h: int = H, w: int = W, box: tuple[int, ...] = BOX) -> Array:
    """(h, w) uint8: black, the box white."""
    pixels = np.zeros((h, w), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    return pixels


def save(path: Path, pixels: Array | None = None, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Pil.Exif()
    exif[274] = orientation
    picture = Pil.fromarray(corner() if pixels is None else pixels)
    picture.save(path, exif=exif) if orientation > 1 else picture.save(path)
    return path


def coco(path: Path, annotations: list[Any], images: list[Any] | None = None, **more: Any) -> Path:
    images = [{"id": 7, "file_name": "a.png", "width": W, "height": H}] if images is None else images
    classes = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": classes} | more))
    return path


def thing(box: tuple[int, ...] = BOX, kind: int = 3, **more: Any) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {"image_id": 7, "category_id": kind, "bbox": [x0, y0, x1 - x0, y1 - y0], **more}


def voc(path: Path, *objects: tuple[str, tuple[int, ...], int], size: tuple[int, int] = (W, H), head: str = "") -> Path:
    """Boxes given from 0, exclusive; written from 1, inclusive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(
        f"<object><name>{n}</name><difficult>{d}</difficult><bndbox><xmin>{b[0] + 1}</xmin><ymin>{b[1] + 1}</ymin>"
        f"<xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox><part><name>head</name></part></object>"
        for n, b, d in objects
    )
    size_ = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    name = f"<filename>{path.stem}.png</filename>"
    path.write_text(f'<?xml version="1.0"?>{head}<annotation>{name}{size_}{body}</annotation>')
    return path


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def bad(images: Images) -> dict[str, str]:
    return dict(images.good()[1])


# Run lengths and polygons


def pack(counts: list[int]) -> str:
    """COCO's packing, number by number, as its description has it."""
    text = ""
    for i, count in enumerate(counts):
        x = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            digit = x & 31
            x >>= 5
            more = x != -1 if digit & 16 else x != 0
            text += chr(48 + (digit | 32 if more else digit))
    return text


def runs(mask: Array) -> list[int]:
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = not value
        counts[-1] += 1
    return counts


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False), st.integers(1, 500))
def test_run_lengths_come_back(h: int, w: int, rng: Any, grown: int) -> None:
    mask = np.array([rng.random() < 0.4 for _ in range(h * w)]).reshape(h, w)
    mask = np.kron(mask, np.ones((1, grown), bool))  # long runs take several characters
    counts = runs(mask)
    assert_array_equal(run_lengths(pack(counts), "it"), counts)
    for given_ in (counts, pack(counts)):
        assert_array_equal(segmentation_mask({"counts": given_, "size": list(mask.shape)}, mask.shape, "it"), mask)


def test_known_run_lengths() -> None:
    assert run_lengths("", "it").tolist() == []
    assert run_lengths("05P1", "it").tolist() == [0, 5, 32]  # P = 32 + 0 means more digits, 1 = 1 * 32
    assert_array_equal(run_mask(np.array([1, 3, 2]), (2, 3), "it"), [[0, 1, 0], [1, 1, 0]])


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"counts": [1, 2], "size": [2, 3]}, "with the sum 6 of the pixels 2 x 3; got 2 with the sum 3"),
        ({"counts": [7, -1], "size": [2, 3]}, "whole numbers from 0"),
        ({"counts": [2**39] * 2, "size": [2, 3]}, "with the sum 6"),
        ({"counts": "0P", "size": [2, 3]}, "a string as COCO packs it"),
        ({"counts": "\u00e9", "size": [2, 3]}, "a string as COCO packs it"),
        ({"counts": "\ud800", "size": [2, 3]}, "a string as COCO packs it"),
        ({"counts": "o" * 30 + "0", "size": [2, 3]}, "a string as COCO packs it"),
        ({"counts": 5, "size": [2, 3]}, "a list or a string; got 5"),
        ({"counts": [6], "size": [3, 2]}, r"of the picture's size \[2, 3\]"),
        ({"counts": [6]}, "a list of polygons, or run lengths"),
        ("nothing", "a list of polygons, or run lengths"),
        ([[0, 0, 1, 1]], "at least three pairs of finite numbers"),
        ([[0, 0, 1, 1, 2]], "at least three pairs of finite numbers"),
        ([[0, 0, 1, 1, 2, float("nan")]], "at least three pairs of finite numbers"),
        ([[0, 0, 1, 1, 2, True]], "at least three pairs of finite numbers"),
        ([7], "at least three pairs of finite numbers"),
    ],
)
def test_sentence_for_a_bad_segmentation(value: Any, sentence: str) -> None:
    with pytest.raises(XaiError, match=sentence):
        segmentation_mask(value, (2, 3), "it")


def inside(x: float, y: float, points: Array) -> bool:
    """Even-odd rule, edge by edge: how many edges a ray to the left crosses."""
    hit = False
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if (ay <= y) != (by <= y) and ax + (y - ay) / (by - ay) * (bx - ax) <= x:
            hit = not hit
    return hit


corners = st.lists(st.tuples(st.integers(-12, 60), st.integers(-12, 60)), min_size=3, max_size=9)


@given(corners)
def test_polygons_hold_the_pixels_whose_centres_they_hold(found: list[tuple[int, int]]) -> None:
    points = np.array(found) / 4  # quarters: many edges go through centres, also some beyond the picture
    mask = np.zeros((8, 11), bool)
    fill_polygon(mask, points)
    assert_array_equal(mask, [[inside(c + 0.5, r + 0.5, points) for c in range(11)] for r in range(8)])


def test_polygon_of_a_rectangle_is_its_box_and_a_fine_one_the_circle() -> None:
    x0, y0, x1, y1 = BOX
    mask = segmentation_mask([[x0, y0, x1, y0, x1, y1, x0, y1], [0, 0, 2, 0, 2, 3, 0, 3]], (H, W), "it")
    assert_array_equal(mask, box_mask(np.array([BOX, (0, 0, 2, 3)]), (H, W)))
    around = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    circle = np.zeros((40, 40), bool)
    fill_polygon(circle, 20 + 11.3 * np.stack([np.cos(around), np.sin(around)], 1))
    y, x = np.mgrid[:40, :40] + 0.5
    assert_array_equal(circle, np.hypot(x - 20, y - 20) < 11.3)


# COCO


def test_coco_one_entry_a_picture_and_class(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    other = (1, 2, 9, 8)
    path = coco(tmp_path / "x.json", [thing(kind=90), thing(other), thing((0, 0, 2, 2), 90, iscrowd=1)])
    images = load_images(path)
    assert images.names == ("a.png#dog", "a.png#cat")
    assert images.label_names == ("cat", "dog")
    dog, cat = images
    assert (dog.label, dog.box_labels, cat.label, cat.box_labels) == ("dog", ("dog", "dog"), "cat", ("cat",))
    assert_array_equal(dog.boxes, [BOX, (0, 0, 2, 2)])
    assert_array_equal(cat.boxes, [other])
    assert dog.difficult is not None
    assert dog.difficult.tolist() == [False, True]
    assert not dog.all_difficult
    assert dog.mask is None
    assert dog.hash == cat.hash
    again = Images.of(list(images))[0]  # what is known of boxes passes through a collection
    assert again.box_labels == dog.box_labels
    assert_array_equal(again.difficult, dog.difficult)


def test_coco_mask_is_the_union_and_an_object_without_outline_fills_its_box(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    x0, y0, x1, y1 = BOX
    triangle = [0, 0, 10, 0, 0, 10]
    crowd = runs(box_mask(np.array([(20, 0, 24, 3)]), (H, W)))
    rows = [thing(segmentation=[[x0, y0, x1, y0, x1, y1, x0, y1]]), thing((0, 0, 10, 10), segmentation=[triangle]),
            thing((20, 0, 24, 3), iscrowd=1, segmentation={"counts": pack(crowd), "size": [H, W]}),
            thing((3, 20, 5, 25)), thing((40, 0, 50, 5), 90)]  # fmt: skip
    cat, dog = load_images(coco(tmp_path / "x.json", rows))
    want = box_mask(np.array([BOX, (20, 0, 24, 3), (3, 20, 5, 25)]), (H, W))
    fill_polygon(want, np.reshape(triangle, (3, 2)).astype(float))
    assert_array_equal(cat.mask, want)
    assert dog.mask is None


@pytest.mark.parametrize("place", ["a.png", "images/a.png", "val2017/a.png", "../a.png", "../images/val2017/a.png"])
def test_coco_pictures_are_found_where_they_usually_lie(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "annotations"
    path = coco(folder / "instances_val2017.json", [thing()])
    save(folder / place)
    assert load_images(str(path))[0].size == (H, W)


def test_pictures_in_a_named_folder(tmp_path: Path) -> None:
    path = coco(tmp_path / "notes" / "deep" / "x.json", [thing()])
    save(tmp_path / "photos" / "a.png")
    assert bad(load_images(path)).keys() == {"a.png#cat"}
    assert load_images(path, folder=tmp_path / "photos")[0].size == (H, W)
    with pytest.raises(XaiError, match="folder must be an existing folder"):
        load_images(path, folder=tmp_path / "nowhere")
    with pytest.raises(XaiError, match="With folder= the source must be an existing COCO JSON"):
        load_images(tmp_path / "photos" / "a.png", folder=tmp_path)
    with pytest.raises(XaiError, match="With folder= the source must be the path of an annotation file; got ndarray"):
        load_images(corner(), folder=tmp_path)


def test_coco_faults_are_one_bad_entry_each(tmp_path: Path) -> None:
    pictures = [{"id": i, "file_name": f"{i}.png", "width": W, "height": H} for i in (7, 8, 9, 10)]
    pictures += [{"id": 11, "file_name": "../../secret.png"}, {"id": 12, "file_name": "/etc/passwd"}, {"id": 13}, "no"]
    save(tmp_path / "7.png")
    save(tmp_path / "9.png", corner()[:20])
    rows: list[Any] = [thing(), thing(kind=90) | {"bbox": [1, 2, 0, 4]}, thing(kind=5)]
    rows += [thing() | {"image_id": i} for i in (8, 9, 11, 12, 99)]
    rows += [thing() | {"category_id": [3]}, 5, thing(segmentation=[[1]]) | {"image_id": 7, "category_id": 3}]
    images = load_images(coco(tmp_path / "x.json", rows, pictures))
    told = bad(images)
    assert told["7.png#dog"].startswith("The bbox of annotation 1 in x.json must be x, y, width and height, the last")
    sentence = "The category_id of annotation 2 in x.json must be one of its `categories`; got 5. Add the category"
    assert told["7.png#category 5"].startswith(sentence)
    assert told["8.png#cat"].startswith("8.png must be on disk; got no file '8.png' in ")
    assert told["9.png#cat"].startswith("9.png must be 50 x 30 pixels, as x.json says; got 50 x 20.")
    assert "must be a path inside" in told["secret.png#cat"]
    assert "must be a path inside" in told["passwd#cat"]
    assert "A polygon of annotation 10 in x.json" in told["7.png#cat"]
    assert {"annotation 7", "annotation 8", "annotation 9", "picture 6", "picture 7"} < told.keys()
    assert len(told) == len(images) == 12  # 10.png shows nothing


def test_names_that_are_no_text_do_not_break_the_record(tmp_path: Path) -> None:
    picture = {"id": 7, "file_name": "\ud800.png"}
    rows = [thing(), thing(kind=90, segmentation={"counts": "\ud800", "size": [1]})]
    classes = [{"id": 3, "name": "c\ud800"}, {"id": 90, "name": "a" * 300}]
    images = load_images(coco(tmp_path / "x.json", rows, [picture], categories=classes))
    assert [name[:7].encode() for name in images.names] == [b"?.png#c", b"?.png#a"]
    assert all(sentence.encode() for _, sentence in images.good()[1])
    long = coco(tmp_path / "x.json", [thing()], [{"id": 7, "file_name": "a" * 300}])
    assert len(bad(load_images(long))) == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "x.json must be a JSON file; got one that cannot be read"),
        ("[" * 100_000, "x.json must be a JSON file; got one that cannot be read"),
        ("[1]", "COCO JSON with the lists `images` and `annotations`; got one with no keys"),
        ('{"images": [], "b": 1}', "got one with images, b. Pass COCO instances"),
        ('{"images": [], "annotations": []}', "a file with annotated pictures; got none with an object"),
    ],
)
def test_sentence_for_json_that_is_no_coco(tmp_path: Path, content: str, sentence: str) -> None:
    with pytest.raises(XaiError, match=sentence):
        load_images(table(tmp_path / "x.json", content))


# VOC


def test_voc_folder(tmp_path: Path) -> None:
    objects = [("dog", (1, 2, 9, 8), 1), ("cat", BOX, 0), ("dog", (0, 0, 1, 1), 1)]
    voc(tmp_path / "Annotations" / "b.xml", *objects)
    voc(tmp_path / "Annotations" / "a.xml", ("bus", BOX, 0), size=(0, 0))
    voc(tmp_path / "Annotations" / "empty.xml")
    for stem in "ab":
        save(tmp_path / "JPEGImages" / f"{stem}.png")
    for source in (tmp_path, tmp_path / "Annotations", str(tmp_path / "Annotations" / "*.xml")):
        if source != str(tmp_path / "Annotations" / "*.xml"):
            images = load_images(source)
            assert images.names == ("a.png#bus", "b.png#dog", "b.png#cat")
            assert images.label_names == ("bus", "cat", "dog")
    assert [i.label for i in images] == ["bus", "dog", "cat"]
    assert_array_equal(images[1].boxes, [(1, 2, 9, 8), (0, 0, 1, 1)])
    assert_array_equal(images[2].boxes, [BOX])
    assert [i.all_difficult for i in images] == [False, True, False]
    assert load_images(tmp_path / "Annotations" / "b.xml").names == ("b.png#dog", "b.png#cat")


def test_voc_masks_of_objects_and_of_classes(tmp_path: Path) -> None:
    voc(tmp_path / "Annotations" / "a.xml", ("dog", (1, 2, 9, 8), 0), ("cat", BOX, 0), ("dog", (20, 0, 25, 4), 0),
        ("bus", (40, 1, 45, 5), 0))  # fmt: skip
    save(tmp_path / "JPEGImages" / "a.png")
    values = np.zeros((H, W), np.uint8)
    values[2:7, 1:8], values[21:28, 34:47], values[0:3, 20:24], values[10:12, 10:12] = 1, 2, 3, 255
    objects = Pil.fromarray(values)
    objects.putpalette([i % 256 for i in range(7, 7 + 768)])  # a palette, whose colours are not the numbers
    (tmp_path / "SegmentationObject").mkdir()
    objects.save(tmp_path / "SegmentationObject" / "a.png")
    dog, cat, bus = load_images(tmp_path)
    assert_array_equal(dog.mask, (values == 1) | (values == 3))
    assert_array_equal(cat.mask, values == 2)
    assert_array_equal(bus.mask, box_mask(np.array([(40, 1, 45, 5)]), (H, W)))  # not shown: its box
    (tmp_path / "SegmentationObject" / "a.png").unlink()
    save(tmp_path / "SegmentationClass" / "a.png", np.choose(values.clip(0, 4), [0, 12, 8, 12, 255]).astype(np.uint8))
    dog, cat, _ = load_images(tmp_path)
    assert_array_equal(dog.mask, (values == 1) | (values == 3))
    assert_array_equal(cat.mask, values == 2)
    save(tmp_path / "SegmentationClass" / "a.png", values[:9])
    told = bad(load_images(tmp_path))["a.png#cat"]
    assert told.startswith("The mask a.png must be 50 x 30 pixels, as its picture; got 50 x 9.")


def test_voc_beside_the_pictures(tmp_path: Path) -> None:
    for stem in "abc":
        save(tmp_path / f"{stem}.png")
    voc(tmp_path / "b.xml", ("dog", BOX, 0))
    table(tmp_path / "c.xml", "<camera>none of ours</camera>")
    images = load_images(tmp_path)
    assert images.names == ("b.png#dog", "a.png", "c.png")
    assert_array_equal(images[0].boxes, [BOX])
    voc(tmp_path / "d.xml", ("dog", BOX, 0)).write_text((tmp_path / "b.xml").read_text().replace("b.png", "/x/d.jpeg"))
    save(tmp_path / "d.png")
    assert load_images(tmp_path / "d.xml")[0].label == "dog"  # of a wrong name the stem still counts


LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    ("head", "edit", "sentence"),
    [
        (LAUGHS, ("dog", "&b;"), "a.xml must be XML without a document type; got one that declares a DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd">', ("", ""), "without a document type"),
        ("", ("</annotation>", ""), "a.xml must be an XML file; got one that cannot be read"),
        ("", ("annotation>", "other>"), "with the root `annotation`; got the root 'other'"),
        ('<?xml version="1.0" encoding="klingon"?>', ('<?xml version="1.0"?>', ""), "a.xml must be an XML file"),
    ],
)
def test_sentence_for_a_bad_xml(tmp_path: Path, head: str, edit: tuple[str, str], sentence: str) -> None:
    path = voc(tmp_path / "Annotations" / "a.xml", ("dog", BOX, 0), head=head)
    path.write_text(path.read_text().replace(*edit))
    with pytest.raises(XaiError, match=sentence):
        load_images(path)
    voc(tmp_path / "Annotations" / "b.xml", ("dog", BOX, 0))
    save(tmp_path / "JPEGImages" / "b.png")
    good, faults = load_images(tmp_path).good()
    assert good.names == ("b.png#dog",)
    assert faults[0][0] == "a.xml"


def test_bad_objects_of_voc(tmp_path: Path) -> None:
    path = voc(tmp_path / "a.xml", ("dog", BOX, 0), ("cat", (5, 5, 3, 9), 0), ("", BOX, 0), ("cow", BOX, 0))
    path.write_text(path.read_text().replace("<ymax>29</ymax></bndbox><part><name>head</name></part></object></ann",
                                             "<ymax>many</ymax></bndbox></object></ann"))  # fmt: skip
    save(tmp_path / "a.png")
    told = bad(load_images(path))
    sentence = "The bndbox of object 2 in a.xml must be xmin <= xmax and ymin <= ymax in pixels; got 6, 6, 3, 9."
    assert told["a.png#cat"].startswith(sentence)
    assert told["a.png#no name"].startswith("The object 3 in a.xml must be one with a `name`")
    assert "got 35, 22, 48, none" in told["a.png#cow"]
    assert len(told) == 3


# CSV


def test_csv_of_several_shapes(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "images" / "b.png")
    for text in (
        "file,x0,y0,x1,y1,label\na.png,34,21,48,29,dog\nb.png,1,2,3,4,cat\na.png,0,0,2,2,dog\n",
        "\ufeffClass;XMax;XMin;YMin;YMax;Image;width;height;difficult\r\ndog;48;34;21;29;a.png;50;30;0\r\n\r\n"
        "cat;3;1;2;4;b.png;;;1\r\ndog;2;0;0;2;a.png;50;30;yes\r\n",
        "path\tx\ty\tw\th\tlabel\na.png\t34\t21\t14\t8\tdog\nb.png\t1\t2\t2\t2\tcat\na.png\t0\t0\t2\t2\tdog\n",
    ):
        images = load_images(table(tmp_path / "boxes.csv", text))
        assert images.names == ("a.png#dog", "b.png#cat")
        assert images.label_names == ("cat", "dog")
        assert_array_equal(images[0].boxes, [BOX, (0, 0, 2, 2)])
        assert_array_equal(images[1].boxes, [(1, 2, 3, 4)])
    numbers = load_images(table(tmp_path / "n.csv", "file,label\na.png,3\nb.png,0\nb.png,\n"))
    assert [(i.name, i.label, i.boxes) for i in numbers] == [("a.png#3", 3, None), ("b.png#0", 0, None),
                                                             ("b.png", None, None)]  # fmt: skip
    assert numbers.label_names is None


def test_csv_takes_the_class_from_the_folder_and_joins_masks(tmp_path: Path) -> None:
    for name in ("train/dog/a.png", "train/cat/b.png"):
        save(tmp_path / name)
    one, two = corner(), corner(box=(0, 0, 3, 4))
    save(tmp_path / "masks" / "1.png", one)
    save(tmp_path / "masks" / "2.png", np.dstack([two * 0, two, two * 0, two + 9]))
    text = "file,mask\ntrain/dog/a.png,masks/1.png\ntrain/dog/a.png,masks/2.png\ntrain/cat/b.png,\n"
    dog, cat = load_images(table(tmp_path / "t.csv", text))
    assert (dog.label, cat.label, cat.mask) == ("dog", "cat", None)
    assert_array_equal(dog.mask, (one > 0) | (two > 0))
    assert dog.boxes is None
    assert load_images(table(tmp_path / "t.csv", "file\ntrain/dog/a.png\n"))[0].label is None


def test_csv_faults_name_the_line(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "small.png", corner()[:9])
    text = ("file,x0,y0,x1,y1,label,mask\na.png,1,2,3,4,ok,\na.png,3,2,1,4,order,\na.png,1,2,,4,gap,\n\"a.png\",1,2\n"
            ",1,2,3,4,dog,\na.png,1,2,3,nan,nan,\na.png,,,,,small,small.png\na.png,,,,,out,../m.png\na.png,,,,,no,m.png\n"
            "../a.png,,,,,up,\ngone.png,,,,,gone,\n")  # fmt: skip
    told = bad(load_images(table(tmp_path / "t.csv", text)))
    assert told["a.png#order"] == (
        "t.csv, line 3: the box must be numbers with x0 < x1 and y0 < y1; got '3, 2, 1, 4'. Correct the row."
    )
    assert "t.csv, line 4: the box" in told["a.png#gap"]
    assert told["line 5"].startswith("t.csv, line 5 must be 7 cells, with a file name; got 'a.png,1,2'.")
    assert "t.csv, line 6" in told["line 6"]
    assert "t.csv, line 7: the box" in told["a.png#nan"]
    assert "The mask small.png must be 50 x 30 pixels" in told["a.png#small"]
    assert "t.csv, line 9: the mask must be a path inside" in told["a.png#out"]
    assert "t.csv, line 10: the mask must be on disk" in told["a.png#no"]
    assert "must be a path inside" in told["a.png#up"]
    assert "gone.png must be on disk" in told["gone.png#gone"]
    assert len(told) == 10


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "with different columns, one of them file, path, image; got the header ''"),
        (b"a,b\n1,2\n", "got the header 'a,b'"),
        (b"file,x,X\n", "different columns"),
        (b"file\n", "a file with annotated pictures; got none with an object"),
        (b"file\n\xff\xfe\n", "t.csv must be a CSV table in UTF-8"),
        (b'file\n"open\n', "t.csv must be a CSV table in UTF-8"),
    ],
)
def test_sentence_for_a_bad_table(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(XaiError, match=sentence):
        load_images(tmp_path / "t.csv")


# EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_boxes_and_masks_turn_with_the_picture(tmp_path: Path, orientation: int, suffix: str) -> None:
    """Drawn on the stored pixels (COCO, VOC) or on those shown (CSV), they lie on the object."""
    save(tmp_path / f"a.{suffix}", corner(), orientation)
    x0, y0, x1, y1 = BOX
    outline = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    picture = {"id": 7, "file_name": f"a.{suffix}", "width": W, "height": H}
    sources = [coco(tmp_path / "x.json", [thing(segmentation=outline)], [picture])]
    sources.append(voc(tmp_path / "a.xml", ("dog", BOX, 0)))
    stored = load_images(sources[0])[0]
    shown = stored.pixels[0] > 0
    assert stored.size == ((W, H) if orientation >= 5 else (H, W))
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    want = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    sources.append(table(tmp_path / "t.csv", f"file,x0,y0,x1,y1\na.{suffix},{','.join(map(str, want))}\n"))
    for source in sources:
        assert_array_equal(load_images(source)[0].boxes, [want])
    assert_array_equal(stored.mask, shown)


def test_the_stated_size_says_which_pixels_are_meant(tmp_path: Path) -> None:
    save(tmp_path / "a.png", corner(), 6)
    turned = (1, 34, 9, 48)  # x = 30 - y, y = x
    head = "file,xmin,ymin,xmax,ymax,width,height\n"
    for box, size in ((BOX, (W, H)), (turned, (H, W))):
        numbers = ",".join(map(str, (*box, *size)))
        assert_array_equal(load_images(table(tmp_path / "t.csv", f"{head}a.png,{numbers}\n"))[0].boxes, [turned])
        picture = {"id": 7, "file_name": "a.png", "width": size[0], "height": size[1]}
        assert_array_equal(load_images(coco(tmp_path / "x.json", [thing(box)], [picture]))[0].boxes, [turned])


# Parquet


def png(pixels: Array) -> bytes:
    stream = io.BytesIO()
    Pil.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_parquet_with_masks_and_several_boxes(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"image": [png(corner())] * 5, "mask": [png(corner()), None, png(corner()[:9]), b"no", None],
               "boxes": [[[1, 2, 3, 4], [0, 0, 0, 0]], None, None, None, [[4.0, 2, 1, 1]]]}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    images = load_images(tmp_path / "d.parquet")
    assert_array_equal(images[0].mask, corner() > 0)
    assert_array_equal(images[0].boxes, [(1, 2, 4, 5), (0, 0, 1, 1)])
    assert images[1].mask is images[1].boxes is None
    told = bad(images)
    assert told["row 2"].startswith("The mask of row 2 must be 50 x 30 pixels, as its picture; got 50 x 9.")
    assert told["row 3"].startswith("The mask of row 3 must be a picture; got")
    assert "The box of row 4 must be finite with x0 <= x1" in told["row 4"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_shared_boxes_in_the_frame_of_a_network() -> None:
    images = load_images(SHARED / "data" / "tinyimagenet20_val.parquet")
    some = list(images[::100])
    batch = made(some, Preprocessing(size=(48, 48), mean=(0.5,), std=(0.5,), resize=56))
    for i, image in enumerate(some):
        boxes, region = batch.boxes(i), batch.region(i)
        assert boxes is not None
        assert region is not None
        assert image.boxes is not None
        want = box_mask(((image.boxes * 56 / 64) - 4), (48, 48))
        assert_array_equal(region, want)
        assert boxes.min() >= 0
        assert boxes.max() <= 48


# Where they lie in the input


def made(images: list[Image], preprocessing: Preprocessing) -> Batch:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Batch(Model(net, preprocessing=preprocessing), images, [preprocessing(image) for image in images])


@pytest.mark.parametrize("crop", ["center", "squash"])
@pytest.mark.parametrize("size", [(24, 24), (20, 32), (32, 20)])
@pytest.mark.parametrize("shape", [(60, 100), (100, 60)])
def test_box_and_mask_lie_on_the_object(crop: str, size: tuple[int, int], shape: tuple[int, int]) -> None:
    box = (shape[1] - 38, shape[0] - 46, shape[1] - 22, shape[0] - 34)
    pixels = corner(*shape, box=box)
    image = Image.of("a", pixels[None], boxes=np.array([box], np.float32), mask=pixels > 0)
    batch = made([image], Preprocessing(size=size, mean=(0.5,), std=(0.5,), crop=crop, interpolation="nearest"))
    seen = batch.seen[0][..., 0] > 127
    mask, boxes = batch.masks(0), batch.boxes(0)
    assert mask is not None
    assert boxes is not None
    assert mask.shape == seen.shape == size
    assert 0 < mask.sum() < mask.size
    assert (mask != seen).sum() <= mask.sum() / 4  # the resize takes other points than centres at some edges
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    np.testing.assert_allclose(boxes[0], [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=1)


@given(
    st.tuples(st.integers(3, 40), st.integers(3, 40)), st.tuples(st.integers(2, 30), st.integers(2, 30)),
    st.sampled_from(["center", "squash"]), st.lists(st.tuples(*[st.integers(0, 40)] * 4), min_size=1, max_size=4),
)  # fmt: skip
def test_the_region_of_boxes_is_that_of_their_mask(shape: tuple[int, int], size: tuple[int, int], crop: str,
                                                   found: list[tuple[int, ...]]) -> None:
    h, w = shape
    boxes = np.array([(min(a, c) % w, min(b, d) % h, min(max(a, c) + 1, w), min(max(b, d) + 1, h))
                      for a, b, c, d in found], np.float32)
    ready = Preprocessing(size=size, mean=(0.5,), std=(0.5,), crop=crop)
    frame = ready(Image.of("a", np.zeros((1, h, w), np.uint8))).frame
    mask = frame.mask_to_input(box_mask(boxes, shape), *size)
    assert_array_equal(frame.boxes_to_input(boxes, *size), mask)
    inner = frame.to_input(boxes)
    y, x = np.argwhere(mask).T + 0.5  # each centre lies in a box of the input's frame
    held = (inner[:, 0, None] <= x + 1e-5) & (x - 1e-5 <= inner[:, 2, None])
    held &= (inner[:, 1, None] <= y + 1e-5) & (y - 1e-5 <= inner[:, 3, None])
    assert held.any(0).all()


def test_what_the_crop_cuts_off_is_an_empty_region() -> None:
    box = np.array([(0, 2, 8, 9), (46, 3, 60, 9)], np.float32)
    mask = np.zeros((20, 60), bool)
    mask[2:9, :8] = True
    pixels = np.zeros((3, 20, 60), np.uint8)
    pictures = [Image.of("boxes", pixels, boxes=box), Image.of("mask", pixels, mask=mask), Image.of("none", pixels),
                Image.of("half", pixels, boxes=np.array([(10, 5, 30, 30)], np.float32))]  # fmt: skip
    batch = made(pictures, Preprocessing(size=(20, 20), mean=(0.5,), std=(0.5,)))  # columns 20 to 40 remain
    assert batch.boxes(0).shape == (0, 4)
    assert [batch.region(i).sum() for i in (0, 1, 3)] == [0, 0, 10 * 15]
    assert batch.masks(0) is batch.boxes(1) is batch.region(2) is None
    assert_array_equal(batch.boxes(3), [[0, 5, 10, 20]])
    assert batch.region(1).dtype == bool
    assert_array_equal(Frame(0, 0, 1, 1).mask_to_input(mask, 20, 60), mask)


def test_image_refuses_boxes_that_do_not_fit() -> None:
    pixels, boxes = np.zeros((1, 4, 5), np.uint8), np.zeros((2, 4), np.float32)
    with pytest.raises(XaiError, match=r"The boxes of a must be \(k, 4\); got \(2, 3\)"):
        Image.of("a", pixels, boxes=boxes[:, :3])
    with pytest.raises(XaiError, match="box_labels of a must be 2 long, one a box; got 1"):
        Image.of("a", pixels, boxes=boxes, box_labels=("x",))
    with pytest.raises(XaiError, match="difficult of a must be 0 long, one a box; got 3"):
        Image.of("a", pixels, difficult=np.zeros(3, bool))


def test_a_table_is_explained(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8))
    text = "file,x0,y0,x1,y1,label\na.png,34,21,48,29,dog\na.png,1,2,3,4,cat\ngone.png,1,2,3,4,cat\n"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    model = Model(net, size=16, mean=[0.5] * 3, std=[0.5] * 3, labels=("cat", "dog"))
    done = xai.explain(model, str(table(tmp_path / "boxes.csv", text)), "gradcam", target="label")
    assert [p.name for p in done.result.images] == ["a.png#dog", "a.png#cat"]
    assert [f.name for f in done.failures] == ["gone.png#cat"]
