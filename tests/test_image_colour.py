"""Depth and colour of files: all 16 bits of PNG and TIFF, colour profiles passed over, CMYK and Lab, by hand."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image as Pil

from xai.errors import XaiError
from xai.image_files import decode, decode_pil
from xai.image_sources import sample_folder
from xai.images import load_images

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
ADOBE: bytes = Pil.open(sample_folder() / "rocket.jpg").info["icc_profile"]  # Adobe RGB (1998)


def saved(array: Array | Pil.Image, kind: str, **options: Any) -> io.BytesIO:
    """The picture as a file of this kind."""
    stream = io.BytesIO()
    picture = array if isinstance(array, Pil.Image) else Pil.fromarray(array)
    picture.save(stream, kind, **options)
    return stream


def png(array: Array, **chunks: bytes) -> io.BytesIO:
    """A 16-bit PNG by hand, every row with another of the five filters; (h, w, C) with C = 1 to 4."""
    h, w, c = array.shape
    rows = array.astype(">u2").view(np.uint8).reshape(h, -1).astype(int)
    step = 2 * c
    body = b""
    for y, row in enumerate(rows):
        left = np.concatenate([np.zeros(step, int), row[:-step]])
        up = rows[y - 1] if y else np.zeros_like(row)
        corner = np.concatenate([np.zeros(step, int), up[:-step]])
        p = left + up - corner
        near = np.stack([abs(p - left), abs(p - up), abs(p - corner)]).argmin(axis=0)
        paeth = np.choose(near, [left, up, corner])
        guess = [0 * row, left, up, (left + up) // 2, paeth][y % 5]
        body += bytes([y % 5]) + ((row - guess) % 256).astype(np.uint8).tobytes()
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[c]
    parts = {
        "IHDR": struct.pack(">IIBBBBB", w, h, 16, colour, 0, 0, 0),
        **chunks,
        "IDAT": zlib.compress(body),
        "IEND": b"",
    }
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(k, v) for k, v in parts.items()))


def chunk(kind: str, content: bytes) -> bytes:
    named = kind.encode() + content
    return struct.pack(">I", len(content)) + named + struct.pack(">I", zlib.crc32(named))


def read(stream: io.BytesIO) -> Array:
    """(C, h, w) -> (h, w, C), or (h, w) for grey."""
    array = decode(stream, "test.png")
    return array[0] if len(array) == 1 else np.moveaxis(array, 0, 2)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_png_keeps_all_bits(channels: int) -> None:
    array = RNG.integers(0, 65536, (11, 7, channels), dtype=np.uint16)
    got = read(png(array))
    assert got.dtype == np.uint16
    if channels % 2:
        assert_array_equal(got, array.squeeze())
    else:
        alpha = array[..., -1:] / 65535
        want = array[..., :-1] * alpha + 65535 * (1 - alpha)
        assert_array_equal(got, np.rint(want).squeeze().astype(np.uint16))


def test_sixteen_bit_interlaced_png_decodes_like_plain() -> None:
    array = RNG.integers(0, 65536, (1, 1, 3), dtype=np.uint16)  # one pixel: the first of the seven passes alone
    plain = bytearray(png(array).getvalue())
    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 1)
    plain[8:33] = chunk("IHDR", head)
    assert_array_equal(read(io.BytesIO(bytes(plain))), array)


def test_sixteen_bit_key_colour_is_white() -> None:
    array = RNG.integers(0, 60000, (4, 5, 3), dtype=np.uint16)
    got = read(png(array, tRNS=array[2, 3].astype(">u2").tobytes()))
    assert_array_equal(got[2, 3], [65535] * 3)
    assert_array_equal(np.delete(got.reshape(-1, 3), 13, axis=0), np.delete(array.reshape(-1, 3), 13, axis=0))
    grey = read(png(array[..., :1], tRNS=array[2, 3, :1].astype(">u2").tobytes()))
    assert grey[2, 3] == 65535
    assert grey[0, 0] == array[0, 0, 0]


def tiff(array: Array, **options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, photometric="rgb", **options)
    return stream


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_sixteen_bit_tiff_keeps_all_bits(order: str, compression: str | None) -> None:
    array = RNG.integers(0, 65536, (40, 37, 3), dtype=np.uint16)
    assert_array_equal(read(tiff(array, byteorder=order, compression=compression)), array)


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiff_in_planes_is_never_misread(order: str) -> None:
    array = RNG.integers(0, 65536, (40, 37, 3), dtype=np.uint16)
    planes = np.moveaxis(array, 2, 0)
    assert_array_equal(read(tiff(planes, planarconfig="separate", byteorder=order, compression="zlib")), array >> 8)
    with pytest.raises(XaiError, match="interleaved channels"):
        read(tiff(planes, planarconfig="separate", byteorder=order))


def test_cmyk_without_profile() -> None:
    cmyk = Pil.merge("CMYK", [Pil.new("L", (8, 8), v) for v in (0, 255, 255, 0)])
    assert_allclose(read(saved(cmyk, "JPEG"))[4, 4].astype(int), [255, 0, 0], atol=3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_a_colour_profile_is_passed_over_as_in_training(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert_array_equal(read(saved(PHOTO, kind, icc_profile=ADOBE, **options)), read(saved(PHOTO, kind, **options)))
    if kind != "JPEG":
        assert_array_equal(read(saved(PHOTO, kind, icc_profile=ADOBE, **options)), PHOTO)


def test_sixteen_bits_survive_a_colour_profile() -> None:
    array = RNG.integers(0, 65536, (6, 9, 3), dtype=np.uint16)
    assert_array_equal(read(png(array, iCCP=b"test\0\0" + zlib.compress(ADOBE))), array)


def test_a_sample_is_what_its_package_reads() -> None:
    """skimage's rocket carries an Adobe RGB profile: the file and the array must give a network the same values."""
    assert_array_equal(load_images("sample:rocket")[0].pixels, np.moveaxis(skimage.data.rocket(), 2, 0))


def test_lab_tiff() -> None:
    lab = Pil.merge("LAB", [Pil.new("L", (3, 3), v) for v in (255, 128, 128)])
    assert_allclose(read(saved(lab, "TIFF"))[1, 1].astype(int), [255] * 3, atol=2)


def test_orientation_of_16_bits() -> None:
    exif = Pil.Exif()
    exif[274] = 6
    array = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    assert_array_equal(read(png(array, eXIf=exif.tobytes()[6:])), np.rot90(array, -1))
    assert_array_equal(read(png(array[..., :1], eXIf=exif.tobytes()[6:])), np.rot90(array[..., 0], -1))


def test_pil_picture_is_like_its_file() -> None:
    exif = Pil.Exif()
    exif[274] = 8
    stream = saved(PHOTO, "PNG", exif=exif, icc_profile=ADOBE)
    assert_array_equal(decode_pil(Pil.open(io.BytesIO(stream.getvalue())), "x"), decode(stream, "x"))
