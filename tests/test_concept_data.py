"""Data with concepts: rendered scenes, Broden and COCO-Stuff folders written here, damaged files, maps in a frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from analyzers.concepts.network_dissection import NetworkDissection
from xai.concept_maps import COLOURS, NONE, ConceptMaps, colour_plane, named_maps
from xai.concept_scenes import CATEGORIES, CONCEPTS, PARTS, PLANES, SIDE, render
from xai.errors import XaiError
from xai.images import Image, load_images
from xai.preprocessing import Preprocessing
from xai.subject import Subject
from xai.zoo.loading import load


# --- rendered ---
def test_a_scene_follows_from_seed_and_number_alone() -> None:
    one, two = load_images("concepts:5@7"), load_images("concepts:9@7")
    assert [image.hash for image in one] == [image.hash for image in two][:5]
    assert one[3].hash != load_images("concepts:5")[3].hash
    assert one.names[3] == "concepts-7-00003"
    assert one[3].size == (SIDE, SIDE)


def test_every_concept_is_shown_and_each_lies_in_its_plane() -> None:
    maps = [render(i)[1] for i in range(80)]
    assert len(CONCEPTS) == 50
    shown = {int(k) for one in maps for k in np.unique(one.planes)} | {k for one in maps for k in one.whole}
    assert shown == {NONE, *range(50)}
    for one in maps:
        for plane, category in zip(one.planes, PLANES, strict=True):
            assert {CONCEPTS[k][0] for k in np.unique(plane) if k != NONE} <= {category}
        assert (one.planes[0] != NONE).all()  # every pixel has a colour
        assert one.categories == CATEGORIES
        assert [CONCEPTS[k][0] for k in one.whole] == ["scene"]


def test_a_part_lies_in_its_object_and_a_pixel_has_its_paint() -> None:
    names = np.array([*(name for _, name in CONCEPTS), ""])
    for i in range(30):
        pixels, maps = render(i)
        whose, which = names[maps.planes[PLANES.index("object")]], names[maps.planes[PLANES.index("part")]]
        for thing, parts in PARTS.items():
            assert (whose[np.isin(which, parts)] == thing).all()
        paint = np.array(list(COLOURS.values()))[maps.planes[0]].transpose(2, 0, 1)
        assert abs(pixels.astype(int) - paint).mean() < 15  # but for shade and noise
        assert not (maps.planes[PLANES.index("shape")] != NONE)[maps.planes[PLANES.index("texture")] != NONE].any()


@pytest.mark.parametrize("text", ["", "0", "x", "5@", "5@x", "-3", "1234567890"])
def test_a_count_that_is_none_gives_a_sentence(text: str) -> None:
    with pytest.raises(XaiError, match=r"must be concepts:COUNT or concepts:COUNT@SEED; got"):
        load_images(f"concepts:{text}")


# --- maps ---
def test_maps_go_where_the_picture_goes() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, (20, 30)).astype(np.int32)
    image = Image.of("a", np.repeat(labels[None] * 20, 3, 0).astype(np.uint8))
    ready = Preprocessing((10, 10), (0.0,), (1.0,), resize=20, interpolation="nearest")(image)
    plane = ready.frame.labels_to_input(labels[None], (20, 30), (10, 10), (10, 10), NONE)[0]
    assert np.array_equal(plane, ready.seen[..., 0] // 20)
    half = ready.frame.labels_to_input(labels[None, ::2, ::2], (20, 30), (10, 10), (5, 5), NONE)[0]
    under = [[labels[(6 + 2 * y) // 2 * 2, (11 + 2 * x) // 2 * 2] for x in range(5)] for y in range(5)]
    assert np.array_equal(half, under)  # a place of two pixels of the input, a label of two pixels of the picture


def test_what_lies_beyond_the_picture_is_no_concept() -> None:
    from xai.preprocessing import Frame

    plane = Frame(-5, 0, 1, 1).labels_to_input(np.ones((1, 4, 4), int), (4, 4), (4, 10), (4, 10), NONE)
    assert np.array_equal(plane[0], np.tile([NONE] * 5 + [1] * 4 + [NONE], (4, 1)))


def test_colours_are_named_and_labels_lie_at_their_mask() -> None:
    rgb = np.array([list(COLOURS.values())], dtype=np.uint8)
    assert colour_plane(rgb).tolist() == [list(range(11))]
    where = np.zeros((1, 11), bool)
    where[0, 4] = True
    maps = named_maps(rgb, "cat", where)
    assert maps.concepts[11:] == (("label", "cat"),)
    assert maps.planes[1].tolist() == [[NONE] * 4 + [11] + [NONE] * 6]
    assert named_maps(rgb, "cat", None).whole == (11,)
    assert named_maps(rgb, None, None).categories == ("color",)


def test_a_category_is_annotated_where_it_is_shown_unless_it_is_said() -> None:
    concepts = (("color", "red"), ("part", "eye"), ("scene", "room"))
    planes = np.full((1, 2, 2), NONE, np.int32)
    assert ConceptMaps(concepts, planes, (2,)).categories == ("scene",)
    planes[0, 0, 0] = 1
    assert ConceptMaps(concepts, planes).categories == ("part",)
    assert ConceptMaps(concepts, planes, annotated=("color",)).categories == ("color",)
    with pytest.raises(XaiError, match="from -1 .none. to 2; got 3"):
        ConceptMaps(concepts, planes + 2)


# --- Broden ---
def broden(folder: Path) -> Path:
    """Three pictures of 8 x 8 with maps of 4 x 4: objects and colours, of the last only a texture."""
    images = folder / "images"
    (images / "ade").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        Pil.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(images / f"ade/{i}.png")
    for name, numbers in (("0_color", [[1, 2]]), ("0_object", [[0, 300]]), ("0_part", [[0, 4]]), ("1_color", [[2, 2]])):
        labels = np.kron(np.array(numbers), np.ones((4, 2), int))
        rgb = np.stack([labels % 256, labels // 256, 0 * labels], 2).astype(np.uint8)
        Pil.fromarray(rgb).save(images / f"ade/{name}.png")
    (folder / "label.csv").write_text(
        "number,name,category,frequency,coverage,syns\n0,-,,0,0,\n1,red-c,color(9),9,1,\n2,blue-c,color(7),7,1,\n"
        "4,door,object(3);part(20),23,2,\n5,dotted,texture(3),3,3,\n300,cat,object(3),3,2,cat;kitty\n")
    (folder / "index.csv").write_text(
        "image,split,ih,iw,sh,sw,color,object,part,material,scene,texture\n"
        "ade/0.png,train,8,8,4,4,ade/0_color.png,ade/0_object.png,ade/0_part.png,,,\n"
        "ade/1.png,train,8,8,4,4,ade/1_color.png,,,,,\n"
        "ade/2.png,val,8,8,4,4,,,,,,5\n")
    return folder


def test_broden_is_read(tmp_path: Path) -> None:
    images = load_images(str(broden(tmp_path)))
    assert images.names == ("ade/0.png", "ade/1.png", "ade/2.png")
    maps = [image.concepts for image in images]
    assert maps[0] is not None
    assert maps[1] is not None
    assert maps[2] is not None
    assert maps[0].concepts == (("color", "red-c"), ("color", "blue-c"), ("part", "door"), ("texture", "dotted"),
                                ("object", "cat"))
    assert [plane[0].tolist() for plane in maps[0].planes] == [[0, 0, 1, 1], [-1, -1, 4, 4], [-1, -1, 2, 2]]
    assert set(maps[0].categories) == {"color", "object", "part"}
    assert maps[1].categories == ("color",)
    assert (maps[2].whole, maps[2].categories) == ((3,), ("texture",))


def test_broden_is_dissected(tmp_path: Path) -> None:
    broden(tmp_path)
    model = load("xai:photo20")
    result = NetworkDissection(permutations=1, drawn=1)(Subject((model,), load_images(str(tmp_path))))
    rows = next(p for p in result.panels if p.key == "categories").rows  # type: ignore[union-attr]
    assert {row[1]: row[2] for row in rows} == {"color": 2, "object": 1, "part": 1, "texture": 1, "all": 5}


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


LINE = "image,split,color,texture\n"


@pytest.mark.parametrize(("breaks", "says"), [
    (write("label.csv", "number,name\n1,red\n"), "label.csv must be a table with the columns number, name, category"),
    (write("label.csv", "number,name,category\nx,red,color\n"), "label.csv, line 2: the number must be a whole"),
    (write("label.csv", "number,name,category\n1,red\n"), "label.csv, line 2 must be 3 cells"),
    (write("index.csv", "name\nx\n"), "index.csv must be a table with the columns image"),
    (write("index.csv", LINE), "index.csv must be a list of pictures"),
    (lambda f: (f / "index.csv").write_bytes(b"image\n\xff\xfe\n"), "index.csv must be a CSV table in UTF-8"),
])
def test_damaged_lists_of_broden_give_a_sentence(tmp_path: Path, breaks: Callable[[Path], object], says: str) -> None:
    breaks(broden(tmp_path))
    with pytest.raises(XaiError, match=says):
        load_images(str(tmp_path))


def grey(folder: Path) -> None:
    Pil.fromarray(np.ones((4, 4), np.uint8)).save(folder / "images/ade/0_color.png")


def smaller(folder: Path) -> None:
    Pil.fromarray(np.zeros((2, 2, 3), np.uint8)).save(folder / "images/ade/0_color.png")


@pytest.mark.parametrize(("breaks", "says"), [
    (lambda f: (f / "images/ade/0.png").unlink(), "index.csv: ade/0.png must be on disk"),
    (lambda f: (f / "images/ade/0_part.png").unlink(), r"part of ade/0.png: ade/0_part.png must be on disk"),
    (lambda f: (f / "images/ade/0_part.png").write_bytes(b"\x89PNG\r\n"), "0_part.png must be"),
    (grey, "0_color.png must be a map in colour"),
    (smaller, "the maps of ade/0.png must be of one size"),
    (write("index.csv", LINE + "ade/0.png,x,,99\n"), "a label must be one of the numbers in label.csv; got 99"),
    (write("index.csv", LINE + "ade/0.png,x,../../secret.png,\n"), "must be a path inside"),
    (write("label.csv", "number,name,category\n1,red,color\n300,cat,object\n4,door,part\n"), "label.csv; got 2"),
])
def test_a_damaged_picture_of_broden_is_named_and_the_others_stay(tmp_path: Path, breaks: Callable[[Path], object],
                                                                 says: str) -> None:
    breaks(broden(tmp_path))
    images = load_images(str(tmp_path))
    with pytest.raises(XaiError, match=says):
        images[0]
    assert "ade/0.png" in [name for name, _ in images.good()[1]]


# --- COCO-Stuff ---
def stuff(folder: Path, nested: bool = True) -> Path:
    """Two pictures of 4 x 6 with their maps."""
    where, maps = folder / "images/train2017", folder / ("stuffthingmaps/train2017" if nested else "annotations")
    where.mkdir(parents=True)
    maps.mkdir(parents=True)
    for name in ("a", "b"):
        Pil.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(where / f"{name}.jpg")
        labels = np.full((4, 6), 255, np.uint8)
        labels[:, :2], labels[:, 4:] = 0, 92
        Pil.fromarray(labels).save(maps / f"{name}.png")
    (folder / "labels.txt").write_text("0: unlabeled\n1: person\n2: bicycle\n93: branch\n94: bridge\n")
    return folder


@pytest.mark.parametrize("nested", [True, False])
def test_coco_stuff_is_read(tmp_path: Path, nested: bool) -> None:
    images = load_images(str(stuff(tmp_path, nested)))
    assert images.names == ("a.jpg", "b.jpg")
    maps = images[1].concepts
    assert maps is not None
    assert [maps.concepts[k] for k in (0, 1, 92, 93)] == [("thing", "person"), ("thing", "bicycle"),
                                                         ("stuff", "branch"), ("stuff", "bridge")]
    assert maps.planes[0, 0].tolist() == [0, 0, NONE, NONE, 92, 92]
    assert maps.categories == ("thing", "stuff")


@pytest.mark.parametrize(("breaks", "says", "whole"), [
    (write("labels.txt", "person\n"), "labels.txt must be lines as `1: person`; got 'person'", True),
    (write("labels.txt", ""), "labels.txt must be lines", True),
    (lambda f: (f / "labels.txt").write_bytes(b"\xff\xfe"), "labels.txt must be text in UTF-8", True),
    (lambda f: [p.unlink() for p in f.rglob("*.png")], "must be a folder of PNG maps", True),
    (lambda f: (f / "images/train2017/a.jpg").unlink(), "the picture of a.png must be on disk", False),
    (lambda f: Pil.new("RGB", (6, 4)).save(f / "stuffthingmaps/train2017/a.png"), "the map a.png must be grey", False),
    (lambda f: Pil.new("L", (5, 4)).save(f / "stuffthingmaps/train2017/a.png"), "of 4 x 6 pixels", False),
    (lambda f: Pil.new("L", (6, 4), 120).save(f / "stuffthingmaps/train2017/a.png"), "from 0 to 93, or 255", False),
    (lambda f: (f / "stuffthingmaps/train2017/a.png").write_bytes(b"x"), "a.png must be", False),
])
def test_damaged_coco_stuff_gives_a_sentence(tmp_path: Path, breaks: Callable[[Path], object], says: str,
                                             whole: bool) -> None:
    breaks(stuff(tmp_path))
    with pytest.raises(XaiError, match=says):
        load_images(str(tmp_path)) if whole else load_images(str(tmp_path))[0]
    if not whole:
        assert load_images(str(tmp_path))[1].concepts is not None


def test_other_folders_stay_what_they_were(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Pil.new("RGB", (4, 4)).save(tmp_path / name / "x.png")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    images = load_images(str(tmp_path))
    assert [image.label for image in images] == ["cat", "dog"]
    assert images[0].concepts is None
