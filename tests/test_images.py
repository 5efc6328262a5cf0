"""Images and load_images: pictures, collections, files, folders, samples, Parquet, laziness, hashes, bad sources."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image as Pil

from xai import image_files, image_sources
from xai.errors import XaiError
from xai.images import Image, Images, load_images

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
CHW = np.moveaxis(PHOTO, 2, 0)
SHARED = Path(__file__).parents[1] / ".." / "shared"


def write(path: Path, value: int = 0, size: tuple[int, int] = (4, 3)) -> Path:
    """A grey PNG of one value under any name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Pil.new("L", size, value).save(path, "PNG")
    return path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were decoded, in order."""
    names: list[str] = []

    def spy(stream: Any, name: str) -> Array:
        names.append(name)
        return original(stream, name)

    original = image_files.decode
    monkeypatch.setattr(image_sources, "decode", spy)
    return names


# Image


def test_hash_is_a_stable_function_of_dtype_shape_and_pixels() -> None:
    image = Image.of("a", np.arange(12, dtype=np.uint8).reshape(1, 3, 4))
    assert image.hash == hashlib.sha256(b"uint8 1x3x4\n" + bytes(range(12))).hexdigest()[:16] == "628211f28a64dcd8"
    assert Image.of("b", image.pixels, label=3).hash == image.hash
    assert Image.of("a", image.pixels.reshape(1, 4, 3)).hash != image.hash
    assert Image.of("a", image.pixels.astype(np.uint16)).hash != image.hash
    turned = np.asfortranarray(image.pixels)
    assert Image.of("a", turned).hash == image.hash
    deep = np.array([[[1, 258]]], dtype=np.uint16)
    assert Image.of("a", deep).hash == hashlib.sha256(b"uint16 1x1x2\n\1\0\2\1").hexdigest()[:16]


def test_pixels_cannot_be_changed_under_the_hash() -> None:
    image = load_images(PHOTO)[0]
    with pytest.raises(ValueError, match="read-only"):
        image.pixels[0, 0, 0] = 1


def test_rgb_of_every_kind_of_pixels() -> None:
    assert_array_equal(Image.of("a", CHW).rgb(), PHOTO)
    assert_array_equal(Image.of("a", CHW[:1]).rgb(), np.repeat(PHOTO[..., :1], 3, axis=2))
    assert_array_equal(Image.of("a", CHW[:2]).rgb(), np.repeat(PHOTO[..., :1], 3, axis=2))
    assert_array_equal(Image.of("a", np.concatenate([CHW, CHW])).rgb(), PHOTO)
    assert_array_equal(Image.of("a", CHW.astype(np.uint16) * 257).rgb(), PHOTO)
    assert_array_equal(Image.of("a", (CHW / 255).astype(np.float32)).rgb(), PHOTO)
    stretched = Image.of("a", np.array([[[-2.0, 0.0, 2.0]]], np.float32), normalised=True).rgb()
    assert_array_equal(stretched[0, :, 0], [0, 128, 255])
    flat = Image.of("a", np.full((1, 2, 2), 7, np.float32), normalised=True).rgb()
    assert_array_equal(flat, np.zeros((2, 2, 3)))


@pytest.mark.parametrize(
    ("size", "side", "want"), [((60, 90), 30, (20, 30)), ((90, 1), 30, (30, 1)), ((5, 4), 30, (5, 4))]
)
def test_thumbnail_keeps_the_shape_and_never_grows(size: tuple[int, int], side: int, want: tuple[int, int]) -> None:
    image = load_images(np.full((*size, 3), 77, np.uint8))[0]
    small = image.thumbnail(side)
    assert small.shape == (*want, 3)
    assert small.dtype == np.uint8
    assert (small == 77).all()
    with pytest.raises(XaiError, match="side must be at least 1 pixel; got 0"):
        image.thumbnail(0)


def test_image_of_refuses_parts_that_do_not_fit() -> None:
    with pytest.raises(XaiError, match=r"pixels \(C, h, w\) of uint8, uint16 or float32; got float64 of shape"):
        Image.of("a", CHW.astype(float))
    with pytest.raises(XaiError, match=r"The mask of a must be \(6, 9\) \(h, w\); got \(9, 6\)"):
        Image.of("a", CHW, mask=np.zeros((9, 6), bool))


# Files, folders, patterns


def test_one_file(tmp_path: Path) -> None:
    Pil.fromarray(PHOTO).save(tmp_path / "a b.png")
    for source in (tmp_path / "a b.png", str(tmp_path / "a b.png")):
        images = load_images(source)
        assert images.names == ("a b.png",)
        assert images.label_names is None
        assert images[0].name == "a b.png"
        assert images[0].size == (6, 9)
        assert_array_equal(images[0].pixels, CHW)


def test_folder_is_sorted_and_skips_what_is_no_picture(tmp_path: Path) -> None:
    for i, name in enumerate(["b.png", "a.PNG", ".hidden.png", "C.jpg", "sub/d.png"]):
        write(tmp_path / name, i)
    (tmp_path / "notes.txt").write_text("x")
    images = load_images(tmp_path)
    assert images.names == ("C.jpg", "a.PNG", "b.png")
    assert [int(i.pixels[0, 0, 0]) for i in images] == [3, 1, 0]
    assert all(i.label is None for i in images)


def test_folder_of_classes_labels_by_sub_folder(tmp_path: Path) -> None:
    for name in ("dog/2.png", "cat/9.png", "cat/deep/1.png", "empty/notes.txt", ".git/x.png"):
        write(tmp_path / name) if name.endswith("png") else (tmp_path / name).parent.mkdir()
    images = load_images(str(tmp_path))
    assert [(i.label, i.name) for i in images] == [("cat", "9.png"), ("cat", "1.png"), ("dog", "2.png")]
    assert images.label_names == ("cat", "dog")


def test_only_the_picture_that_is_asked_for_is_decoded(tmp_path: Path, decoded: list[str]) -> None:
    for i in range(1000):
        (tmp_path / f"{i:04}.png").write_bytes(b"never read")
    write(tmp_path / "0700.png", 7)
    images = load_images(tmp_path)
    assert len(images) == len(images.names) == 1000
    some = images[600:900:50] + images[:3]
    assert len(some) == 9
    assert decoded == []
    assert int(some[2].pixels[0, 0, 0]) == 7 == int(images[-300].pixels[0, 0, 0])
    assert decoded == ["0700.png"] * 2


def test_pattern(tmp_path: Path) -> None:
    for name in ("x/b1.png", "x/b2.png", "y/b3.png", "x/c.png", "[odd].png"):
        write(tmp_path / name)
    (tmp_path / "x" / "b4.txt").write_text("x")
    assert load_images(f"{tmp_path}/*/b*").names == ("b1.png", "b2.png", "b3.png")
    assert load_images(f"{tmp_path}/**/*.png").names == ("[odd].png", "b1.png", "b2.png", "c.png", "b3.png")
    assert load_images(f"{tmp_path}/[odd].png").names == ("[odd].png",)
    with pytest.raises(XaiError, match="one that matches pictures; got no match"):
        load_images(f"{tmp_path}/*.jpg")
    with pytest.raises(XaiError, match="got 1 matches, none of them a picture"):
        load_images(f"{tmp_path}/x/*.txt")


def test_name_with_stray_bytes_can_be_printed() -> None:
    entry = image_sources._file_entry(Path(os.fsdecode(b"caf\xe9.png")))
    assert entry.name.encode() == "caf\ufffd.png".encode()


# Samples


def test_samples_ship_with_scikit_image() -> None:
    coffee = load_images("sample:coffee")[0]
    assert (coffee.name, coffee.size, coffee.hash) == ("coffee", (400, 600), "f453307f12cf92d0")
    with pytest.raises(
        XaiError, match=r"sample:chelsey must be one of astronaut, .*rocket.* Did you mean chelsea.*\?$"
    ):
        load_images("sample:chelsey")


def test_every_sample_can_be_read() -> None:
    names = sorted(p.stem for p in image_sources.sample_folder().iterdir() if p.suffix in (".png", ".jpg"))
    small = [n for n in names if n not in ("hubble_deep_field", "retina")]  # the largest two, left out for time
    good, bad = load_images([f"sample:{n}" for n in small]).good()
    assert bad == []
    assert good.names == tuple(small)


# Parquet


def parquet(path: Path, **columns: list[Any]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def encoded(value: int) -> bytes:
    stream = io.BytesIO()
    Pil.new("L", (4, 3), value).save(stream, "PNG")
    return stream.getvalue()


def test_parquet_with_every_column(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "d.parquet",
        image=[encoded(i) for i in range(5)],
        label=[2, 0, 2, 0, 0],
        name=["fox", "cat", "fox", "cat", "cat"],
        wnid=["n2", "n0", "n2", "n0", "n0"],
        box=[[0, 1, 2, 2], [0, 0, 0, 0], None, [1, 1, 3, 2], [0, 0, 3, 2]],
        file=[f"f{i}.png" for i in range(5)],
    )
    images = load_images(path)
    assert images.names == tuple(f"f{i}.png" for i in range(5))
    assert images.label_names == ("cat", "class 1", "fox")
    assert [i.label for i in images] == [2, 0, 2, 0, 0]
    assert [int(images[i].pixels[0, 0, 0]) for i in (4, 0, 3, 1, 2)] == [4, 0, 3, 1, 2]
    assert images[2].boxes is None
    assert_array_equal(images[0].boxes, [[0, 1, 3, 3]])
    again = pickle.loads(pickle.dumps(images[3:]))
    assert again[0].hash == images[3].hash
    assert again.label_names == images.label_names


def test_parquet_with_pictures_alone_and_with_bad_rows(tmp_path: Path) -> None:
    images = load_images(str(parquet(tmp_path / "d.parquet", image=[encoded(1), b"junk", None])))
    assert images.names == ("row 0", "row 1", "row 2")
    assert images.label_names is None
    good, bad = images.good()
    assert good.names == ("row 0",)
    assert good[0].label is None
    assert bad[0] == (
        "row 1",
        "row 1 must be a picture; got a file of text. Pass a PNG, JPEG, WebP, TIFF, BMP or GIF file.",
    )
    assert "empty `image` in row 2" in bad[1][1]


def test_parquet_whose_pictures_are_bytes_in_a_struct(tmp_path: Path) -> None:
    rows = [{"bytes": encoded(9), "path": None}]
    assert int(load_images(parquet(tmp_path / "d.parquet", image=rows, label=[1]))[0].pixels[0, 0, 0]) == 9


def test_parquet_reads_one_row_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    groups: list[int] = []
    original = pq.ParquetFile.read_row_group

    def spy(file: Any, group: int, **options: Any) -> Any:
        groups.append(group)
        return original(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    images = load_images(parquet(tmp_path / "d.parquet", image=[encoded(i) for i in range(6)]))
    assert groups == []
    assert [int(i.pixels[0, 0, 0]) for i in images[1:5]] == [1, 2, 3, 4]
    assert groups == [0, 1, 2]


def test_parquet_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_text("no")
    with pytest.raises(XaiError, match="a Parquet file; got one that cannot be read"):
        load_images(tmp_path / "d.parquet")
    with pytest.raises(XaiError, match="column `image`; got 1 rows with the columns picture"):
        load_images(parquet(tmp_path / "e.parquet", picture=[b""]))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_shared_parquet_and_photographs() -> None:
    images = load_images(SHARED / "data" / "tinyimagenet20_val.parquet")
    assert len(images) == 1000
    assert images.label_names is not None
    assert len(images.label_names) == 20
    assert (images[0].label, images.label_names[0], images[0].size) == (0, "tabby", (64, 64))
    assert_array_equal(images[0].boxes, [[0, 6, 64, 62]])
    photos = load_images(str(SHARED / "images"))
    assert len(photos) == 40
    assert photos[0].size == (375, 500)


# Collections


def test_collection_is_a_sequence() -> None:
    images = load_images(np.stack([np.full((5, 6), i, np.uint8) for i in range(10)])[..., None])
    assert [int(i.pixels[0, 0, 0]) for i in images[7:2:-2]] == [7, 5, 3]
    assert images[-1].hash == images[9].hash
    assert len(images[:0]) == 0
    assert isinstance(images[2:4], Images)
    with pytest.raises(IndexError):
        images[10]
    both = images[:2] + images[5:6]
    assert both.names == ("picture 0", "picture 1", "picture 5")
    assert len(both) == 3
    assert Images.of(list(both), ("a",)).label_names == ("a",)
    assert [i.hash for i in Images.of(both)] == [i.hash for i in both]
    assert repr(images) == "<10 images: picture 0, picture 1, picture 2, ...>"


def test_names_and_labels_replace_those_of_the_source() -> None:
    batch = np.zeros((3, 5, 6, 3), np.uint8)
    images = load_images(batch, names=["a", "b", "c"], labels=torch.tensor([3, 1, 2]))
    assert [(i.name, i.label) for i in images] == [("a", 3), ("b", 1), ("c", 2)]
    assert [i.label for i in load_images(batch, labels=["x", None, np.int64(4)])] == ["x", None, 4]
    with pytest.raises(XaiError, match="names must be 3 long, one a picture; got 1"):
        load_images(batch, names=["a"])
    with pytest.raises(XaiError, match=r"A label must be an integer or a string; got 0.5"):
        load_images(batch, labels=[0.5, 1, 2])


def test_good_reads_each_once_and_keeps_none(tmp_path: Path, decoded: list[str]) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", i)
    (tmp_path / "1.png").write_bytes(b"")
    good, bad = load_images(tmp_path).good()
    assert decoded == ["0.png", "1.png", "2.png"]
    assert good.names == ("0.png", "2.png")
    assert bad == [("1.png", "1.png must be a picture; got an empty file (0 bytes). Copy or download it again.")]
    assert int(good[1].pixels[0, 0, 0]) == 2
    assert decoded[3:] == ["2.png"]


# Bad sources


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("", "A picture must be an existing file; got ''"),
        ("no/such/cat.jpg", "There is no folder 'no/such'"),
        ("x" * 5000, r"an existing file; got 'x+' \(.*\)\. Check the name"),
        (os.devnull, "an ordinary file or a folder; got the device or pipe"),
        ("https://example.org/cat.jpg", "a file on this machine; .* Download it first"),
        ([], "at least one long; got an empty list"),
        (7, "got int"),
        (b"\x89PNG", "got bytes"),
        ({"a": PHOTO}, "got dict"),
        ((PHOTO for _ in range(2)), r"got generator. Pass list\(source\)"),
    ],
)
def test_sentence_for_a_bad_source(source: Any, sentence: str) -> None:
    with pytest.raises(XaiError, match=sentence):
        load_images(source)


def test_missing_file_offers_near_names(tmp_path: Path) -> None:
    write(tmp_path / "holiday.png")
    with pytest.raises(XaiError, match=r"Did you mean holiday.png\?$"):
        load_images(str(tmp_path / "hollidays.png"))


def test_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(XaiError, match="a folder of pictures; got a folder without pictures"):
        load_images(tmp_path)
    parquet(tmp_path / "d.parquet", image=[encoded(1)])
    with pytest.raises(XaiError, match=r"got a folder with 1 Parquet files. Name one of them"):
        load_images(tmp_path)


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_images(write(tmp_path / "a.png"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(XaiError, match=r"a.png must be readable; got permission denied\. Change its permissions"):
        images[0]
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(XaiError, match="must be readable; got permission denied"):
        load_images(tmp_path)


def test_file_that_vanishes_before_it_is_read(tmp_path: Path) -> None:
    images = load_images(write(tmp_path / "a.png"))
    (tmp_path / "a.png").unlink()
    with pytest.raises(XaiError, match=r"a.png must be a readable file; got the answer No such file"):
        images[0]


def test_normalised_is_for_arrays_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png")
    for source in (path, str(path), Pil.fromarray(PHOTO), [path, path]):
        with pytest.raises(XaiError, match="With normalised=True the source must be a float array or tensor"):
            load_images(source, normalised=True)


def test_loading_a_file_imports_no_torch() -> None:
    code = (
        "import sys; from xai.images import load_images; load_images('sample:coffee')[0].thumbnail(64);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'skimage', 'pyarrow', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
