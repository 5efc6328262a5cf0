"""One picture file, or PIL picture, decoded to an array: size limit, alpha, orientation, 16 bits.

What comes out is what the data loaders of torchvision, timm and transformers give a network, upright: the stored
values, with an embedded colour profile passed over as they do (measured: squeezenet1_0 calls an Adobe RGB photograph
"pole" once it is converted to sRGB and "missile" as it stands), EXIF orientation applied, transparency composited over
white, the first frame or page. No metadata (EXIF, GPS, profile, comments) is kept.
"""

from __future__ import annotations

import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pil
from PIL import ImageCms, ImageOps, UnidentifiedImageError

from xai.errors import XaiError, error

Array = npt.NDArray[Any]
MAX_PIXELS = 120_000_000  # the largest phone cameras make 108 million; RGB of this size is 360 MB
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")
SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "tif", "tiff", "bmp", "dib", "gif", "avif"),
        *("jp2", "j2k", "ppm", "pgm", "pbm", "pnm", "tga", "ico"),
        *("heic", "heif"),  # not decoded, but a picture to its owner: named as bad, never skipped in silence
    )
)
HINTS = {
    ".heic": "Convert it to JPEG or PNG",
    ".heif": "Convert it to JPEG or PNG",
    ".svg": "Draw it to a PNG first",
    ".pdf": "Draw the page to a PNG first",
    ".npy": "Load it with numpy.load and pass the array",
    ".npz": "Load it with numpy.load and pass the array",
    ".pt": "Load it with torch.load and pass the tensor",
}
DEEP = re.compile(r"(RGB|RGBA|RGBX);16[BLN]|LA;16B")
_OPENING = threading.Lock()


def decode(stream: IO[bytes], name: str) -> Array:
    """The picture in `stream` (a seekable file) as (C, h, w): uint8, uint16 or, from a float TIFF, float32 in [0, 1].

    C is 1 for grey and 3 for colour. 16-bit grey and RGB of PNG and TIFF stay 16-bit; 16-bit CMYK, premultiplied alpha,
    TIFF in planes and JPEG 2000 in colour come in 8 bits. Raises XaiError.
    """
    try:
        picture = _open(stream, name)
        raw = _deep_rawmode(picture, name)
        picture.load()
        low = _low_bytes(stream, name, raw) if raw else None
        return _pixels(picture, low, raw, name)
    except XaiError:
        raise
    except UnidentifiedImageError as cause:
        raise _not_a_picture(stream, name) from cause
    except Exception as cause:  # a decoder may fail on damaged bytes in any way it likes
        raise _damaged(name, cause) from cause


def decode_pil(picture: Pil.Image, name: str) -> Array:
    """A PIL picture as `decode` would give its file, except that 48-bit RGB is already 8-bit there. Raises XaiError."""
    _check_size(picture.size, name)
    try:
        picture.load()
        return _pixels(picture, None, None, name)
    except XaiError:
        raise
    except Exception as cause:  # as above: a file that PIL opened lazily is decoded only here
        raise _damaged(name, cause) from cause


def stored(stream: IO[bytes], name: str) -> Array:
    """The values as the file stores them, not turned: (h, w) of grey or palette numbers, or (h, w, C). Raises XaiError.

    What a picture of labels needs: object numbers must not become the colours of their palette.
    """
    try:
        picture = _open(stream, name)
        picture.load()
        return np.asarray(picture)
    except XaiError:
        raise
    except UnidentifiedImageError as cause:
        raise _not_a_picture(stream, name) from cause
    except Exception as cause:  # as in `decode`
        raise _damaged(name, cause) from cause


def orientation(stream: IO[bytes], name: str) -> int:
    """EXIF orientation, 1 (as stored) to 8, of a picture that `decode` has read and turned upright."""
    try:
        value = _open(stream, name).getexif().get(274, 1)
    except Exception as cause:  # as in `decode`
        raise _damaged(name, cause) from cause
    return value if value in range(1, 9) else 1


def has_alpha(stream: IO[bytes], name: str) -> bool:
    """Whether the file of a picture that `decode` has read says how transparent its pixels are."""
    try:
        return bool(_open(stream, name).has_transparency_data)
    except Exception as cause:  # as in `decode`
        raise _damaged(name, cause) from cause


@contextmanager
def _no_pil_limit() -> Iterator[None]:
    """PIL's own limit switched off while a header is read, so that ours decides and can name width and height."""
    with _OPENING:
        before = Pil.MAX_IMAGE_PIXELS
        Pil.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Pil.MAX_IMAGE_PIXELS = before


def _open(stream: IO[bytes], name: str) -> Pil.Image:
    Pil.init()
    stream.seek(0)
    known = [f for f in FORMATS if f in Pil.OPEN]  # AVIF and JPEG 2000 are not in every build
    with _no_pil_limit(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PIL's remarks on odd EXIF blocks; unreadable pixels raise later
        picture = Pil.open(stream, formats=known)
    _check_size(picture.size, name)
    return picture


def _check_size(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        got = f"{size[0]} x {size[1]} pixels (read from the header, nothing was decoded)"
        do = "Scale it down first, or cut out the part of interest"
        raise error(name, f"a picture of at most {MAX_PIXELS // 10**6} million pixels", got, do)


def _deep_rawmode(picture: Pil.Image, name: str) -> str | None:
    """PIL's name for the layout of a file with 16 bits in several channels, which it would cut to 8; None for others.

    Raises XaiError for the one layout that PIL reads wrongly.
    """
    modes = {str(t.args if isinstance(t.args, str) else (t.args or [""])[0]) for t in getattr(picture, "tile", ())}
    tags = getattr(picture, "tag_v2", {})  # TIFF only
    if tags.get(284) == 2 and 16 in tags.get(258, ()):  # PlanarConfiguration, BitsPerSample
        if all(DEEP.fullmatch(m) for m in modes):
            return None  # compressed planes: libtiff gives the high bytes, whichever order it is told
        got = "one with separate, uncompressed channel planes, which PIL misreads"
        raise error(name, "a 16-bit TIFF with interleaved channels", got, "Save it again with interleaved channels")
    mode = modes.pop() if len(modes) == 1 else ""
    return mode if DEEP.fullmatch(mode) else None


def _low_bytes(stream: IO[bytes], name: str, raw: str) -> Pil.Image:
    """The same file read a second time for the bytes that PIL drops.

    PIL reads a 16-bit sample of order B (or L) by taking its high byte; told the other order, it takes the low one.
    Grey with alpha has no such twin, but its 4 bytes a pixel can be read as they stand, as if they were RGBA.
    """
    native = "L" if sys.byteorder == "little" else "B"
    other = {"B": "L", "L": "B", "N": "B" if native == "L" else "L"}
    wanted = "RGBA" if raw.startswith("LA") else raw[:-1] + other[raw[-1]]
    picture: Any = _open(stream, name)
    picture.tile = [t._replace(args=wanted if isinstance(t.args, str) else (wanted, *t.args[1:])) for t in picture.tile]
    picture.load()
    loaded: Pil.Image = picture
    return loaded


def _pixels(picture: Pil.Image, low: Pil.Image | None, raw: str | None, name: str) -> Array:
    """Upright and flattened over white, as a contiguous (C, h, w) array."""
    upright = ImageOps.exif_transpose(picture)
    if low is not None and raw is not None:
        array = _flatten(_sixteen(upright, ImageOps.exif_transpose(low), raw, picture.info.get("transparency")))
    else:
        array = _flatten(_plain(upright, picture.info.get("transparency"), name))
    return np.ascontiguousarray(array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0))


def _plain(picture: Pil.Image, key: Any, name: str) -> Array:
    """(h, w), (h, w, 2) grey+alpha, (h, w, 3) or (h, w, 4) RGB+alpha."""
    mode = picture.mode
    if mode == "LAB":
        return np.asarray(_from_lab(picture))
    if mode.startswith("I") or mode == "F":
        return _keyed(_grey_deep(picture, name), key if mode.startswith("I;16") else None)
    if picture.has_transparency_data:
        grey = mode in ("1", "L", "LA", "La")
        return np.asarray(picture.convert("LA" if grey else "RGBA"))
    return np.asarray(picture.convert("L" if mode in ("1", "L") else "RGB"))


def _grey_deep(picture: Pil.Image, name: str) -> Array:
    """16-bit grey as it is; 32-bit integers where they fit 16 bits; floats where they lie in [0, 1]."""
    array = np.asarray(picture)
    if picture.mode == "F":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            got = f"{array.min():.4g} to {array.max():.4g}"
            raise error(name, "a float picture with values in [0, 1]", got, "Rescale it, or save it with 16 bits")
        return array.astype(np.float32)
    if array.min() < 0 or array.max() > 65535:
        got = f"integers from {array.min()} to {array.max()}"
        raise error(name, "a picture of 8 or 16 bits a channel", got, "Rescale it, or pass floats in [0, 1]")
    return array.astype(np.uint16)


def _sixteen(high: Pil.Image, low: Pil.Image, raw: str, key: Any) -> Array:
    """uint16 (h, w, 2), (h, w, 3) or (h, w, 4) from the two readings of the file."""
    second = np.ascontiguousarray(np.asarray(low))
    if raw.startswith("LA"):
        return second.view(">u2").astype(np.uint16)
    return _keyed(np.asarray(high).astype(np.uint16) << 8 | second, key)


def _keyed(array: Array, key: Any) -> Array:
    """The one colour that a PNG declares transparent, as white."""
    if key is None:
        return array
    clear = array == key if array.ndim == 2 else (array == np.asarray(key, dtype=array.dtype)).all(axis=2)
    array = array.copy()
    array[clear] = 65535
    return array


def _flatten(array: Array) -> Array:
    """Alpha composited over white: round(v * a + 1 * (1 - a)), in integers, with v and a in [0, 1]."""
    if array.ndim == 2 or array.shape[2] == 3:
        return array
    full = int(np.iinfo(array.dtype).max)
    value, alpha = array[..., :-1].astype(np.uint64), array[..., -1:].astype(np.uint64)
    flat = ((value * alpha + full * (full - alpha) + full // 2) // full).astype(array.dtype)
    return flat[..., 0] if flat.shape[2] == 1 else flat


def _from_lab(picture: Pil.Image) -> Pil.Image:
    """Lab by its definition, the one colour space that PIL's plain formulas do not turn to RGB."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    done = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
    if done is None:
        raise ImageCms.PyCMSError("no picture came back")
    return done


def _not_a_picture(stream: IO[bytes], name: str) -> XaiError:
    stream.seek(0)
    start = stream.read(512)
    suffix = name[name.rfind(".") :].lower() if "." in name else ""
    if not start:
        return error(name, "a picture", "an empty file (0 bytes)", "Copy or download it again")
    if suffix in HINTS:
        do = HINTS[suffix]
    elif suffix in SUFFIXES:
        do = "Look at what it really holds: its ending does not fit its content"
    else:
        do = "Pass a PNG, JPEG, WebP, TIFF, BMP or GIF file"
    if b"\0" not in start and all(c >= 32 or c in b"\t\n\r\f" for c in start):
        return error(name, "a picture", "a file of text", do)
    kinds = [f for f in FORMATS if f in Pil.OPEN and (accept := Pil.OPEN[f][1]) and accept(start[:16]) is True]
    if kinds:
        do = "Copy or download it again, or save it anew with another program"
        return error(name, "a picture that PIL can read", f"a {kinds[0]} file with a damaged or unusual header", do)
    got = f"a file that starts with the bytes {start[:4].hex(' ')}, which no known picture format does"
    return error(name, "a picture", got, do)


def _damaged(name: str, cause: Exception) -> XaiError:
    why = " ".join(str(cause).split()) or type(cause).__name__
    got = f"one that is cut short or damaged ({why.rstrip('.')})"
    return error(name, "a whole picture", got, "Copy or download it again")
