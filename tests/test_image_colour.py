"""Depth and colour of files: all 16 bits of PNG and TIFF, colour profiles, CMYK and Lab, against formulas by hand."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image as Pil
from PIL import ImageCms

from xai.errors import XaiError
from xai.image_files import decode, decode_pil

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


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


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A small ICC profile of version 2 (ICC.1:2001-04): header, tag table, tags."""
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    white = xyz(0.9642, 1.0, 0.8249)
    tags = {b"desc": text, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": white, **tags}
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    kind, pcs = (b"prtr", b"Lab ") if space == b"CMYK" else (b"mntr", b"XYZ ")
    head = (
        bytes(4)
        + b"none"
        + struct.pack(">I", 0x02100000)
        + kind
        + space
        + pcs
        + struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
    )
    head += b"acsp" + bytes(28) + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    whole = head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))


def gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


# sRGB's primaries adapted to D50 (ICC's own sRGB profile); with red and green exchanged and another gamma they make a
# profile whose conversion to sRGB can be worked out by hand.
SRGB = {"r": (0.4361, 0.2225, 0.0139), "g": (0.3851, 0.7169, 0.0971), "b": (0.1431, 0.0606, 0.7141)}
SWAPPED = profile(
    b"RGB ",
    {
        b"rXYZ": xyz(*SRGB["g"]),
        b"gXYZ": xyz(*SRGB["r"]),
        b"bXYZ": xyz(*SRGB["b"]),
        b"rTRC": gamma(1.8),
        b"gTRC": gamma(1.8),
        b"bTRC": gamma(1.8),
    },
)


def srgb_curve(linear: Array) -> Array:
    """IEC 61966-2-1."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


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


def test_cmyk_goes_through_its_profile() -> None:
    """A profile in which no ink is Lab (100, 0, 0), and whose every other corner is Lab (50, 0, 0): sRGB 119 (CIE)."""
    grid = bytearray()
    for corner in range(16):
        grid += bytes([255 if corner == 0 else 128, 128, 128])  # Lab in 8 bits: L * 255 / 100, a + 128, b + 128
    ramp = bytes(range(256))
    lut = (
        b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 * v for v in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    )
    made = profile(b"CMYK", {b"A2B0": lut + ramp * 4 + bytes(grid) + ramp * 3})
    ink = Pil.merge("CMYK", [Pil.new("L", (8, 8), v) for v in (255, 0, 0, 0)])
    got = read(saved(ink, "TIFF", icc_profile=made))
    plain = read(saved(ink, "TIFF"))
    assert_array_equal(plain[0, 0], [0, 255, 255])
    assert_allclose(got[0, 0].astype(int), [119] * 3, atol=1)
    none = Pil.new("CMYK", (8, 8))
    assert_allclose(read(saved(none, "TIFF", icc_profile=made))[0, 0].astype(int), [255] * 3, atol=2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_other_rgb_profile_becomes_srgb(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    got = read(saved(PHOTO, kind, icc_profile=SWAPPED, **options))
    want = 255 * srgb_curve((PHOTO / 255.0) ** 1.8)[..., [1, 0, 2]]
    assert_allclose(got, want, atol=2)


def test_sixteen_bit_with_other_profile_becomes_8_bit_srgb() -> None:
    array = RNG.integers(0, 65536, (6, 9, 3), dtype=np.uint16)
    got = read(png(array, iCCP=b"test\0\0" + zlib.compress(SWAPPED)))
    assert got.dtype == np.uint8
    assert_allclose(got, 255 * srgb_curve((array / 65535.0) ** 1.8)[..., [1, 0, 2]], atol=3)


def test_grey_profile() -> None:
    made = profile(b"GRAY", {b"kTRC": gamma(1.0)})
    ramp = np.arange(256, dtype=np.uint8)[None]
    got = read(saved(ramp, "PNG", icc_profile=made))
    assert got.shape == ramp.shape
    assert_allclose(got, 255 * srgb_curve(ramp / 255.0), atol=1)


def test_srgb_damaged_or_unfitting_profile_changes_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = profile(b"GRAY", {b"kTRC": gamma(1.0)})
    for made in (srgb, grey, SWAPPED[:60]):
        assert_array_equal(read(saved(PHOTO, "PNG", icc_profile=made)), PHOTO)


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
    stream = saved(PHOTO, "PNG", exif=exif, icc_profile=SWAPPED)
    assert_array_equal(decode_pil(Pil.open(io.BytesIO(stream.getvalue())), "x"), decode(stream, "x"))
