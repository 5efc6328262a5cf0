"""Decoding one file: formats, palettes, alpha, floats, orientation, GPS, the size limit, a sentence for bad files."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image as Pil
from PIL import TiffImagePlugin

from xai import image_files
from xai.errors import XaiError
from xai.image_files import decode, decode_pil
from xai.images import load_images

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(array: Array | Pil.Image, kind: str, **options: Any) -> io.BytesIO:
    """The picture as a file of this kind."""
    stream = io.BytesIO()
    picture = array if isinstance(array, Pil.Image) else Pil.fromarray(array)
    picture.save(stream, kind, **options)
    return stream


def read(stream: io.BytesIO) -> Array:
    """(C, h, w) -> (h, w, C), or (h, w) for grey."""
    array = decode(stream, "test.png")
    return array[0] if len(array) == 1 else np.moveaxis(array, 0, 2)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_lossless_formats_give_the_pixels_back(kind: str) -> None:
    assert_array_equal(read(saved(PHOTO, kind)), PHOTO)
    assert_array_equal(read(saved(PHOTO[..., 0], kind)), PHOTO[..., 0])


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_come_out_near(kind: str) -> None:
    smooth = np.dstack([np.full((16, 16), v, np.uint8) for v in (200, 100, 50)])
    assert_allclose(read(saved(smooth, kind)).astype(int), smooth, atol=6)


def test_one_bit_and_palette() -> None:
    bits = PHOTO[..., 0] > 128
    assert_array_equal(read(saved(Pil.fromarray(bits), "PNG")), bits * np.uint8(255))
    few = Pil.fromarray(PHOTO).quantize(256)
    assert_array_equal(read(saved(few, "PNG")), np.asarray(few.convert("RGB")))


def test_first_frame_of_a_gif() -> None:
    frames = [Pil.new("P", (4, 3), i) for i in (0, 1)]
    for frame in frames:
        frame.putpalette([10, 20, 30, 40, 50, 60])
    array = read(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert_array_equal(array, np.broadcast_to([10, 20, 30], (3, 4, 3)))


def test_float_and_32_bit_grey() -> None:
    unit = RNG.random((4, 5), dtype=np.float32)
    assert_array_equal(read(saved(unit, "TIFF")), unit)
    with pytest.raises(XaiError, match=r"values in \[0, 1\]; got .* to 2\d\d"):
        read(saved(unit * 0 + np.float32(255), "TIFF"))
    deep = RNG.integers(0, 65536, (4, 5), dtype=np.int32)
    got = read(saved(deep, "TIFF"))
    assert got.dtype == np.uint16
    assert_array_equal(got, deep)
    with pytest.raises(XaiError, match="integers from 70000 to 70000"):
        read(saved(deep * 0 + 70000, "TIFF"))


def test_alpha_is_composited_over_white() -> None:
    rgba = RNG.integers(0, 256, (6, 9, 4), dtype=np.uint8)
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 255
    alpha = rgba[..., 3:] / 255
    want = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha))
    got = read(saved(rgba, "PNG"))
    assert_array_equal(got, want)
    assert_array_equal(got[0, :2], [[255] * 3, rgba[0, 1, :3]])
    assert_array_equal(read(saved(rgba[..., 2:], "PNG")), want[..., 2])


def test_transparent_palette_entry_and_key_colour_are_white() -> None:
    picture = Pil.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    assert_array_equal(read(saved(picture, "PNG", transparency=1))[0], [[10, 20, 30], [255] * 3])
    half = read(saved(picture, "PNG", transparency=bytes([255, 51])))[0]
    assert_array_equal(half, [[10, 20, 30], [212, 214, 216]])
    key = tuple(int(v) for v in PHOTO[1, 2])
    assert_array_equal(read(saved(PHOTO, "PNG", transparency=key))[1, 2], [255] * 3)
    grey = read(saved(np.array([[7, 8]], np.uint8), "PNG", transparency=7))
    assert_array_equal(grey, [[255, 8]])


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Pil.Exif()
    exif[274] = orientation
    assert_array_equal(read(saved(PHOTO, kind, exif=exif)), TURNS[orientation](PHOTO))


def test_gps_of_a_phone_jpeg_goes_nowhere(tmp_path: Path) -> None:
    exif = Pil.Exif()
    exif[274] = 6
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = tuple(TiffImagePlugin.IFDRational(v) for v in (48, 51, 30))
    exif[0x010F] = "SecretCamera"
    (tmp_path / "phone.jpg").write_bytes(saved(PHOTO, "JPEG", exif=exif, comment=b"SecretPlace").getvalue())
    assert Pil.open(tmp_path / "phone.jpg").getexif().get_ifd(0x8825)[1] == "N"
    image = load_images(tmp_path / "phone.jpg")[0]
    assert image.size == (9, 6)
    assert set(vars(image)) == {"name", "pixels", "hash", "label", "boxes", "mask", "normalised", "box_labels",
                                "difficult", "concepts", "alpha"}  # fmt: skip
    assert "Secret" not in repr(image)
    assert image.label is None


# Bad files


def fake_size(width: int, height: int) -> io.BytesIO:
    """A PNG of one pixel whose header claims another size."""
    whole = saved(np.zeros((1, 1), np.uint8), "PNG").getvalue()
    head = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    return io.BytesIO(whole[:12] + head + struct.pack(">I", zlib.crc32(head)) + whole[33:])


def test_bomb_is_refused_from_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Pil.MAX_IMAGE_PIXELS
    with pytest.raises(XaiError, match=r"at most 120 million pixels; got 20000 x 20000 pixels .* nothing was decoded"):
        decode(fake_size(20_000, 20_000), "bomb.png")
    assert before == Pil.MAX_IMAGE_PIXELS
    monkeypatch.setattr(image_files, "MAX_PIXELS", 53)
    with pytest.raises(XaiError, match="9 x 6"):
        decode_pil(Pil.fromarray(PHOTO), "picture")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 54)
    assert_array_equal(read(saved(PHOTO, "PNG")), PHOTO)


def test_pil_never_warns_of_a_bomb_below_the_limit() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(XaiError, match="cut short or damaged"):  # past the limit: decoding was tried
            decode(fake_size(10_000, 10_000), "large.png")


def test_pil_limit_is_restored_after_an_error() -> None:
    before = Pil.MAX_IMAGE_PIXELS
    with pytest.raises(XaiError, match="a file of text"):
        decode(io.BytesIO(b"hello"), "note.png")
    assert before == Pil.MAX_IMAGE_PIXELS


BAD = {
    "empty.png": (b"", "empty.png must be a picture; got an empty file (0 bytes). Copy or download it again."),
    "note.png": (
        b"dear diary\n",
        "note.png must be a picture; got a file of text."
        " Look at what it really holds: its ending does not fit its content.",
    ),
    "a.dat": (
        b"\x01\x02\x03\x04\0\0",
        "a.dat must be a picture; got a file that starts with the bytes 01 02 03 04, which no known picture format"
        " does. Pass a PNG, JPEG, WebP, TIFF, BMP or GIF file.",
    ),
    "phone.heic": (
        b"\0\0\0\x18ftypheic\0\0\0\0",
        "phone.heic must be a picture; got a file that starts with the bytes 00 00 00 18, which no known picture format"
        " does. Convert it to JPEG or PNG.",
    ),
    "half.tif": (
        b"II*\0\x08\0\0\0",
        "half.tif must be a picture that PIL can read; got a TIFF file with a damaged or unusual header. Copy or"
        " download it again, or save it anew with another program.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_sentence_for_a_file_that_is_no_picture(name: str) -> None:
    content, sentence = BAD[name]
    with pytest.raises(XaiError) as caught:
        decode(io.BytesIO(content), name)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"])
def test_file_cut_anywhere_gives_one_sentence(kind: str) -> None:
    whole = saved(RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8), kind).getvalue()
    for share in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(XaiError) as caught:
            decode(io.BytesIO(whole[: int(share * len(whole))]), "cut.bin")
        assert str(caught.value).startswith("cut.bin must be a")
        assert "\n" not in str(caught.value)


def test_truncated_jpeg_says_so() -> None:
    whole = saved(PHOTO, "JPEG").getvalue()
    with pytest.raises(XaiError, match=r"a whole picture; got one that is cut short or damaged .*truncated.* again"):
        decode(io.BytesIO(whole[:-40]), "cut.jpg")
