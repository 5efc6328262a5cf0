"""Pictures in memory: layouts and values of arrays and tensors, PIL pictures, lists, Datasets and DataLoaders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal
from PIL import Image as Pil

from xai.errors import XaiError
from xai.images import load_images

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
CHW = np.moveaxis(PHOTO, 2, 0)


def write(path: Path, value: int = 0, size: tuple[int, int] = (4, 3)) -> Path:
    """A grey PNG of one value under any name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Pil.new("L", size, value).save(path, "PNG")
    return path


DTYPES = st.sampled_from(["uint8", "uint16", "float16", "float32", "float64", "bool", ">u2", ">f4"])
SIDES = st.integers(5, 9)


def values(shape: tuple[int, ...], dtype: str) -> st.SearchStrategy[Array]:
    unit = {"min_value": 0, "max_value": 1} if np.dtype(dtype).kind == "f" else None
    return hnp.arrays(dtype, shape, elements=unit)


@settings(deadline=None)
@given(st.data(), DTYPES, SIDES, SIDES, st.integers(1, 4), st.integers(1, 3))
def test_every_array_layout_gives_the_same_pictures(data: Any, dtype: str, h: int, w: int, c: int, n: int) -> None:
    batch = data.draw(values((n, c, h, w), dtype))
    want = batch.astype(np.float32) if batch.dtype.kind == "f" else batch
    want = want * np.uint8(255) if dtype == "bool" else want
    for given_batch in (batch, np.moveaxis(batch, 1, 3)):
        images = load_images(given_batch)
        assert len(images) == n
        for image, pixels in zip(images, want, strict=True):
            assert image.pixels.dtype.name in ("uint8", "uint16", "float32")
            assert image.pixels.flags.c_contiguous
            assert_array_equal(image.pixels, pixels)
    alone = load_images(np.moveaxis(batch[0], 0, 2))
    assert alone.names == ("picture",)
    assert alone[0].hash == load_images(batch)[0].hash
    assert_array_equal(load_images(batch[0, 0])[0].pixels, want[0, :1])


@settings(deadline=None)
@given(st.data(), st.sampled_from(["uint8", "float32", "float64", "bool"]), st.integers(1, 6), SIDES, SIDES)
def test_tensors_are_always_channels_first(data: Any, dtype: str, c: int, h: int, w: int) -> None:
    array = data.draw(values((c, h, w), dtype))
    tensor = torch.from_numpy(array)
    want = array * np.uint8(255) if dtype == "bool" else array.astype("float32" if "float" in dtype else dtype)
    assert_array_equal(load_images(tensor)[0].pixels, want)
    assert_array_equal(load_images(tensor[None].expand(2, -1, -1, -1))[1].pixels, want)
    assert_array_equal(load_images(tensor[0])[0].pixels, want[:1])


def test_tensor_of_any_kind() -> None:
    grad = torch.rand(3, 4, 4, requires_grad=True)
    assert load_images(grad)[0].pixels.dtype == np.float32
    assert_array_equal(load_images(torch.full((3, 4, 3), 0.5, dtype=torch.bfloat16))[0].pixels, np.full((3, 4, 3), 0.5))
    assert load_images(torch.zeros(13, 4, 4, dtype=torch.uint16))[0].pixels.shape == (13, 4, 4)


def test_image_is_a_copy_of_its_array() -> None:
    array = PHOTO.copy()
    image = load_images(array)[0]
    array[:] = 0
    assert_array_equal(image.pixels, CHW)


def test_float_noise_outside_the_unit_interval_is_clipped() -> None:
    image = load_images(np.array([[-1e-7, 1 + 5e-7]]))[0]
    assert_array_equal(image.pixels, [[[0, 1]]])


def test_normalised_floats_stay_as_they_are() -> None:
    batch = RNG.normal(size=(2, 3, 5, 6)).astype(np.float32)
    images = load_images(batch, normalised=True)
    assert all(i.normalised for i in images)
    assert images.names == ("picture 0", "picture 1")
    assert_array_equal(images[1].pixels, batch[1])
    assert not load_images(PHOTO)[0].normalised


NAN = np.zeros((2, 3, 5, 5))
NAN[1, 2, 3, 4] = np.nan
BAD_ARRAYS = {
    "nan": (
        NAN,
        False,
        "finite; got 1 values that are NaN or infinite, the first at picture 1, channel 2, row 3, column 4",
    ),
    "inf": (np.full((5, 5), np.inf), True, "finite; got 25 values"),
    "0-255": (PHOTO.astype(float), False, r"float values in \[0, 1\]; got .* Divide by 255, or pass uint8\.$"),
    "0-65535": (PHOTO * 200.0, False, "Divide by 65535, or pass uint16"),
    "negative": (PHOTO / 255 - 0.5, False, "or pass normalised=True"),
    "overshoot": (np.array([[0.5, 1.02]]), False, "Clip it"),
    "huge": (PHOTO * 1e6, False, r"Rescale it to \[0, 1\]"),
    "int64": (PHOTO.astype(int), False, "uint8, uint16, bool, or float in .*; got int64"),
    "normalised ints": (PHOTO, True, "float values when normalised=True; got uint8"),
    "too large for float32": (np.full((5, 5), 1e300), True, "float32 values"),
    "1 dim": (np.zeros(5), False, r"an array of shape \(h, w\).*; got shape \(5,\)"),
    "5 dims": (np.zeros((1, 1, 3, 5, 5)), False, "got shape"),
    "scalar": (np.float64(0.5), False, r"got shape \(\)"),
    "no channel axis": (np.zeros((13, 20, 20)), False, "neither axis is 1 to 4 long"),
    "two channel axes": (np.zeros((3, 20, 3)), False, "both the first and the last axis could be the channels"),
    "no pictures": (np.zeros((0, 20, 20, 3)), False, "at least one picture"),
    "tensor dims": (
        torch.zeros(5),
        False,
        r"a tensor of shape \(h, w\), \(C, h, w\) or \(n, C, h, w\); got shape \(5,\)",
    ),
    "complex": (np.zeros((5, 5), complex), False, "got complex128"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_sentence_for_a_bad_array(case: str) -> None:
    array, normalised, sentence = BAD_ARRAYS[case]
    with pytest.raises(XaiError, match=sentence):
        load_images(array, normalised=normalised)


def test_dark_picture_in_a_batch_of_0_to_255_does_not_pass() -> None:
    batch = np.stack([np.zeros((5, 6, 3)), np.full((5, 6, 3), 200.0)])
    with pytest.raises(XaiError, match="Divide by 255"):
        load_images(batch)


# PIL pictures, lists, Datasets


def test_pil_picture(tmp_path: Path) -> None:
    assert load_images(Pil.fromarray(PHOTO)).names == ("picture",)
    path = write(tmp_path / "a.png", 5)
    assert load_images([Pil.open(path), PHOTO]).names == ("a.png", "picture 1")


def test_list_of_anything_keeps_the_order(tmp_path: Path) -> None:
    path = write(tmp_path / "p.png", 5)
    loaded = load_images("sample:coffee")
    images = load_images(
        [path, str(tmp_path), (PHOTO, 7), np.stack([PHOTO] * 2), Pil.fromarray(PHOTO), loaded[0], loaded]
    )
    assert images.names == ("p.png", "p.png", "picture 2", "picture 3", "picture 4", "picture 5", "coffee", "coffee")
    assert [i.label for i in images] == [None, None, 7, None, None, None, None, None]
    assert images[6].hash == images[7].hash == loaded[0].hash
    assert load_images(loaded).names == loaded.names
    assert load_images(loaded[0])[0].hash == loaded[0].hash


def test_bad_path_in_a_list_waits_until_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "photo.png", 5)
    (tmp_path / "text.png").write_text("hello")
    images = load_images([str(tmp_path / "foto.png"), path, tmp_path / "text.png"])
    assert images.names == ("foto.png", "photo.png", "text.png")
    with pytest.raises(XaiError, match=r"an existing file; got .* Did you mean photo.png"):
        images[0]
    good, bad = images.good()
    assert good.names == ("photo.png",)
    assert [b[0] for b in bad] == ["foto.png", "text.png"]
    with pytest.raises(XaiError, match="an existing file"):
        load_images([str(tmp_path / "foto.png")])


class Pairs(torch.utils.data.Dataset[Any]):
    """Five pictures of one value each; counts how often it is asked."""

    def __init__(self, make: Any) -> None:
        self.make, self.classes = make, ["even", "odd"]
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> Any:
        self.asked.append(i)
        return self.make(i)


ITEMS = {
    "tensor and int": lambda i: (torch.full((3, 6, 5), i, dtype=torch.uint8), i % 2),
    "array and numpy int": lambda i: (np.full((6, 5, 3), i, np.uint8), np.int64(i % 2)),
    "array and tensor": lambda i: (np.full((6, 5, 3), i, np.uint8), torch.tensor(i % 2)),
    "PIL": lambda i: (Pil.new("RGB", (5, 6), (i, i, i)), i % 2),
    "mapping": lambda i: {"image": torch.full((3, 6, 5), i, dtype=torch.uint8), "label": i % 2},
}


@pytest.mark.parametrize("kind", ITEMS)
def test_dataset_is_read_item_by_item(kind: str) -> None:
    dataset = Pairs(ITEMS[kind])
    images = load_images(dataset)
    assert dataset.asked == []
    assert len(images) == 5
    assert images.label_names == ("even", "odd")
    image = images[3]
    assert dataset.asked == [3]
    assert (image.name, image.label, image.size) == ("item 3", 1, (6, 5))
    assert_array_equal(image.pixels, np.full((3, 6, 5), 3))
    subset = load_images(torch.utils.data.Subset(dataset, [4, 2]))
    assert [int(i.pixels[0, 0, 0]) for i in subset] == [4, 2]
    assert subset.label_names == ("even", "odd")


def test_dataset_without_labels_and_with_boxes_and_mask() -> None:
    mask = np.eye(6, 5, dtype=np.uint8)
    item = {"image": np.zeros((6, 5, 3)), "boxes": torch.tensor([[0, 0, 2, 3]]), "mask": mask}
    image = load_images(Pairs(lambda i: item))[0]
    assert image.label is None
    assert image.mask is not None
    assert_array_equal(image.boxes, [[0, 0, 2, 3]])
    assert_array_equal(image.mask, mask.astype(bool))
    assert load_images(Pairs(lambda i: torch.rand(3, 4, 5)))[2].label is None
    assert load_images(Pairs(lambda i: (torch.rand(3, 4, 5), {"boxes": 1})))[2].label is None


@pytest.mark.parametrize("kind", ["tensor and int", "mapping"])
def test_data_loader_gives_its_order_and_collates_one_at_a_time(kind: str) -> None:
    dataset = Pairs(ITEMS[kind])
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, sampler=[4, 3, 2, 1, 0], drop_last=True)
    images = load_images(loader)
    assert dataset.asked == []
    assert images.names == ("item 4", "item 3", "item 2", "item 1")
    assert [(int(i.pixels[0, 0, 0]), i.label) for i in images] == [(4, 0), (3, 1), (2, 0), (1, 1)]
    single = load_images(torch.utils.data.DataLoader(dataset, batch_size=None))
    assert [i.label for i in single] == [0, 1, 0, 1, 0]
    named = Pairs(lambda i: (torch.zeros(3, 4, 5), "cat"))
    assert load_images(torch.utils.data.DataLoader(named, batch_size=2))[1].label == "cat"


def test_normalised_dataset() -> None:
    dataset = Pairs(lambda i: torch.full((3, 4, 5), -2.0))
    assert load_images(dataset, normalised=True)[0].normalised
    good, bad = load_images(dataset).good()
    assert not good
    assert "Item 0 of the Pairs must be float values in [0, 1]; got -2 to -2" in bad[0][1]
    with pytest.raises(XaiError, match="got a PIL picture"):
        load_images(Pairs(ITEMS["PIL"]), normalised=True)[0]


BAD_ITEMS = {
    "raises": (lambda i: 1 // 0, "Item 1 of the Pairs must be readable; got ZeroDivisionError: .*dataset\\[1\\]"),
    "text": (lambda i: "photo.jpg", "an array, a tensor or a PIL picture; got str"),
    "batch": (lambda i: torch.zeros(2, 3, 4, 5), "one picture; got 2 pictures"),
}


@pytest.mark.parametrize("case", BAD_ITEMS)
def test_sentence_for_a_bad_item(case: str) -> None:
    make, sentence = BAD_ITEMS[case]
    with pytest.raises(XaiError, match=sentence):
        load_images(Pairs(make))[1]


class Stream(torch.utils.data.IterableDataset[Any]):
    """A Dataset without an index."""

    def __iter__(self) -> Any:
        return iter([torch.zeros(3, 4, 5)])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (Stream(), "a length and an index; got a Stream that can only be walked"),
        (torch.utils.data.DataLoader(Stream()), "got a DataLoader that can only be walked"),
        (torch.utils.data.TensorDataset(torch.zeros(0, 3, 4, 4)), "an empty TensorDataset"),
    ],
)
def test_sentence_for_a_bad_dataset(source: Any, sentence: str) -> None:
    with pytest.raises(XaiError, match=sentence):
        load_images(source)
