"""Bad input: one sentence that names the value and the next step, exit code 2, nothing half-written, leaked or run."""

from __future__ import annotations

import base64
import errno
import html.parser
import io
import itertools
import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin, TiffImagePlugin
from safetensors.torch import save_file

from tests.command_line import (
    NETS,
    NORMAL,
    ROOT,
    XAI,
    CommandLine,
    same_maps,
    sentence,
    snapshot,
    unfinished,
)
from xai.zoo.loading import load

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
CPU = ["--device", "cpu"]
SMALL = "timm:test_resnet?size=32"


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """`xai` in a folder with a good picture and the code of two networks."""
    Image.fromarray(PIXELS).save(tmp_path / "good.png")
    (tmp_path / "net.py").write_text(NETS)
    return CommandLine(tmp_path, monkeypatch, capfd)


def saved(kind: str, picture: Image.Image | None = None, **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    stream = io.BytesIO()
    (picture or Image.fromarray(PIXELS)).save(stream, kind, **options)
    return stream.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG made by hand: `rows` are the samples, each row after a zero byte."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def sixteen_bits(channels: int) -> bytes:
    """A PNG with 16 bits a sample: grey, or colour."""
    samples = np.random.default_rng(1).integers(0, 65536, (40, 50 * channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    return png(50, 40, 16, 0 if channels == 1 else 2, rows)


def alpha(mode: str) -> Image.Image:
    """A picture that is half transparent."""
    picture = Image.fromarray(PIXELS).convert("RGB" if mode == "RGBA" else "L")
    picture.putalpha(Image.fromarray(np.tile(np.arange(50, dtype=np.uint8) * 5, (40, 1))))
    return picture


# --- pictures that are none ---
BAD_PICTURES: dict[str, tuple[bytes, str]] = {
    "text.png": (b"dear diary, today I was renamed\n", "a file of text"),
    "cut.jpg": (saved("JPEG")[:-400], "cut short or damaged"),
    "cut.png": (saved("PNG")[:-400], "cut short or damaged"),
    "empty.png": (b"", "an empty file (0 bytes)"),
    "bomb.png": (png(20_000, 20_000, 8, 2, b"\0" * 100), "20000 x 20000 pixels"),
    "noise.png": (b"\x01\x02\x03\x04\0\0\0\0", "01 02 03 04"),
    "page.html": (b"<!DOCTYPE html><html></html>", "a file of text"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_file_that_is_no_picture(name: str, line: CommandLine) -> None:
    content, said = BAD_PICTURES[name]
    Path(name).write_bytes(content)
    assert said in line.refused("explain", name, names=name)
    assert said in line.refused("analyze", "gradcam", "--model", "xai:photo20", "--data", name, names=name)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["god.png"], "'god.png'"),
        (["nowhere/good.png"], "'nowhere/good.png'"),
        (["*.jpg"], "'*.jpg'"),
        (["void"], "void"),
        ([""], "''"),
        (["sample:cofee"], "sample:cofee"),
        (["https://example.org/a.png"], "https://example.org/a.png"),
        (["x" * 300 + ".png"], "xxxxxx"),
        (["net.parquet"], "net.parquet"),
    ],
    ids=lambda value: value[0][:20] if isinstance(value, list) else "",
)
def test_pictures_that_are_not_there(words: list[str], names: str, line: CommandLine) -> None:
    Path("void").mkdir()
    Path("net.parquet").write_text("no table")
    line.refused("explain", *words, names=names)


def test_near_names_of_pictures_are_offered(line: CommandLine) -> None:
    assert "Did you mean good.png?" in line.refused("explain", "god.png", names="'god.png'")
    assert "Did you mean coffee?" in line.refused("explain", "sample:cofee", names="sample:cofee")


def test_a_single_bad_picture_in_a_folder_is_a_single_bad_input(line: CommandLine) -> None:
    Path("photos").mkdir()
    Path("photos/text.png").write_text("dear diary")
    line.refused("explain", "photos", names="text.png")
    line.refused("explain", "photos/*.png", names="text.png")


def test_of_many_pictures_each_bad_one_is_named_on_page_and_terminal(line: CommandLine) -> None:
    Path("photos").mkdir()
    shutil.copy("good.png", "photos")
    for name, (content, _) in BAD_PICTURES.items():
        Path("photos", name).write_bytes(content)
    bad = {name for name in BAD_PICTURES if name != "page.html"}  # in a folder no other endings are looked at
    done = line("explain", "photos", *CPU)
    assert done.code == 1
    failures = json.loads((done.folder / "run.json").read_text())["failures"]
    assert {failure["name"] for failure in failures} == bad
    page = (done.folder / "index.html").read_text()
    assert len(done.err.splitlines()) == len(bad)
    for name in bad:
        told = next(text for text in done.err.splitlines() if text.startswith(f"xai: {name}: "))
        assert BAD_PICTURES[name][1] in told
        assert name in page
    assert not unfinished(line.folder)


def test_a_file_name_with_a_line_break_or_a_terminal_code_stays_one_line(line: CommandLine) -> None:
    for name in ("two\nlines.png", "red\x1b[31m.png"):
        Path(name).write_text("dear diary")
        said = line.refused("explain", name, names=name[:3])
        assert "\x1b" not in said
        done = line("explain", name, "good.png", *CPU)
        assert done.code == 1
        assert len(done.err.splitlines()) == 1
        assert "\x1b" not in done.err


# --- pictures that must work ---
GOOD_PICTURES: dict[str, Callable[[], bytes]] = {
    "grey16.png": lambda: sixteen_bits(1),
    "rgb16.png": lambda: sixteen_bits(3),
    "grey16.tif": lambda: saved("TIFF", Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)),
    "cmyk.jpg": lambda: saved("JPEG", Image.fromarray(PIXELS).convert("CMYK")),
    "cmyk.tif": lambda: saved("TIFF", Image.fromarray(PIXELS).convert("CMYK")),
    "palette.png": lambda: saved("PNG", Image.fromarray(PIXELS).quantize(16)),
    "palette_clear.png": lambda: saved("PNG", Image.fromarray(PIXELS).quantize(16), transparency=3),
    "alpha.png": lambda: saved("PNG", alpha("RGBA")),
    "grey_alpha.png": lambda: saved("PNG", alpha("LA")),
    "grey.png": lambda: saved("PNG", Image.fromarray(PIXELS[..., 0])),
    "bits.png": lambda: saved("PNG", Image.fromarray(PIXELS[..., 0] > 128)),
    "one.png": lambda: saved("PNG", Image.new("RGB", (1, 1), (200, 10, 10))),
    "thin.png": lambda: saved("PNG", Image.fromarray(PIXELS).resize((1, 90))),
    "photo.webp": lambda: saved("WEBP"),
    "photo.gif": lambda: saved("GIF"),
    "photo.bmp": lambda: saved("BMP"),
    "WRONG_ENDING.gif": lambda: saved("PNG"),
}


@pytest.mark.parametrize("name", GOOD_PICTURES)
def test_an_unusual_picture_works(name: str, line: CommandLine) -> None:
    Path(name).write_bytes(GOOD_PICTURES[name]())
    done = line.fine("explain", name, *CPU)
    record = json.loads((done.folder / "result.json").read_text())
    assert record["images"][0]["name"] == name
    assert [panel["kind"] for panel in record["panels"]].count("heatmap") == 1


def test_alpha_lies_over_white_and_a_palette_changes_nothing(line: CommandLine) -> None:
    few = Image.fromarray(PIXELS).quantize(16)
    half = alpha("RGBA")
    white = Image.new("RGBA", half.size, (255, 255, 255, 255))
    pairs = [(few, few.convert("RGB")), (half, Image.alpha_composite(white, half).convert("RGB"))]
    for special, plain in pairs:
        special.save("picture.png")
        first = line.fine("explain", "picture.png", "--out", "special", *CPU)
        plain.save("picture.png")
        same_maps(first.folder, line.fine("explain", "picture.png", "--out", "plain", *CPU).folder)


# --- what a picture must not tell ---
def test_exif_orientation_is_applied(line: CommandLine) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(PIXELS).save("turned.png", exif=exif)
    Image.fromarray(np.rot90(PIXELS, -1).copy()).save("upright.png")
    turned, upright = (line.fine("explain", f"{name}.png", *CPU).folder for name in ("turned", "upright"))
    same_maps(turned, upright)
    records = [json.loads((folder / "result.json").read_text())["images"][0] for folder in (turned, upright)]
    assert records[0]["size"] == records[1]["size"] == [50, 40]
    assert records[0]["hash"] == records[1]["hash"]


PLANTED = ("PlantedCamera", "PlantedOwner", "PlantedComment", "PlantedPlace", "PlantedNote", "PlantedText", "1987:06")
PLACE = (48_123_457, 51_765_433, 302_461_373)  # numerators that do not come up by chance


def planted() -> Image.Exif:
    exif = Image.Exif()
    exif[274], exif[0x010F], exif[0x013B] = 6, "PlantedCamera", "PlantedOwner"
    exif.get_ifd(0x8769)[0x927C] = b"PlantedNote"
    place = exif.get_ifd(0x8825)
    place[1], place[3], place[29], place[28] = "N", "E", "1987:06:05", b"ASCII\0\0\0PlantedPlace"
    place[2] = place[4] = tuple(TiffImagePlugin.IFDRational(value, 1_000_003) for value in PLACE)
    return exif


def written(folder: Path) -> bytes:
    """Every byte below a folder, and what is packed in data URIs and in the chunks of PNG files."""
    found = []
    for content in snapshot(folder).values():
        pieces = [content or b""]
        pieces += [base64.b64decode(text) for text in re.findall(rb"base64,([A-Za-z0-9+/]+=*)", pieces[0])]
        for piece in pieces:
            found.append(piece)
            if piece.startswith((b"\x89PNG", b"\xff\xd8")):
                with Image.open(io.BytesIO(piece)) as picture:
                    picture.load()
                    found.append(repr((picture.info, dict(picture.getexif()))).encode())
    return b"\n".join(found)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_gps_and_other_secrets_of_a_photograph_reach_no_written_byte(kind: str, line: CommandLine) -> None:
    exif, options = planted(), dict[str, Any]()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><GPS>PlantedText</GPS></x:xmpmeta>'
    if kind == "JPEG":
        options = {"comment": b"PlantedComment", "xmp": xmp}
    elif kind == "PNG":
        notes = PngImagePlugin.PngInfo()
        notes.add_text("Comment", "PlantedComment")
        notes.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options = {"pnginfo": notes}
    name = f"phone.{kind.lower()}"
    Image.fromarray(PIXELS).save(name, kind, exif=exif, **options)
    marks = [text.encode() for text in PLANTED]
    marks += [struct.pack(order + "I", value) for order in "<>" for value in PLACE]
    held = Path(name).read_bytes()
    there = [mark for mark in marks if mark in held]
    assert b"PlantedCamera" in there, "a leak would be seen"
    assert kind == "TIFF" or len(there) >= 7, "of the place too; Pillow leaves it out of a TIFF"
    done = line.fine("explain", name, "--method", "gradcam,saliency", "--save", "npy,png,overlay", "--json", *CPU)
    folder = next(Path("xai-out").iterdir())
    line.fine("report", folder)
    told = written(folder) + done.out.encode() + line.fine("report", folder, "--csv").out.encode()
    assert len(told) > 10_000
    assert [mark for mark in marks if mark in told] == []
    assert b"Exif\0\0" not in told
    assert b"phone." in told


# --- models and weights ---
@pytest.mark.parametrize(
    ("model", "names", "near"),
    [
        ("xai:foto20", "foto20", "xai:photo20"),
        ("resnet5", "resnet5", "torchvision:resnet50"),
        ("timm:resnet5", "resnet5", "timm:resnet5"),
        ("torchvison:resnet50", "torchvison", "torchvision"),
        ("xai:photo20?sise=64", "sise", "size"),
        ("xai:photo20?size=big", "'big'", "?size=224"),
        ("", "''", "xai models list"),
        ("net.py", "net.py", "file:net.py"),
        ("file:net.py:cn", "cn", "cnn"),
        ("file:none.py:cnn", "none.py", ""),
        ("none.onnx", "none.onnx", ""),
        ("good.png", "good.png", ""),
    ],
)
def test_an_unknown_model(model: str, names: str, near: str, line: CommandLine) -> None:
    assert near in line.refused("explain", "good.png", "--model", model, names=names)


def test_weights_with_another_number_of_classes(line: CommandLine) -> None:
    with load(f"{SMALL}&classes=10", weights="random", device="cpu").opened() as module:
        save_file(dict(module.state_dict()), "ten.safetensors")
    words = ["good.png", "--model", SMALL, "--weights", "ten.safetensors"]
    said = line.refused("explain", *words, names="10 classes")
    assert "1000 classes" in said
    assert "classes=10" in said
    line.refused("models", "info", SMALL, "--weights", "ten.safetensors", names="10 classes")
    line.fine("explain", "good.png", "--model", f"{SMALL}&classes=10", "--weights", "ten.safetensors", *CPU)


class Trap:
    """Leaves a folder behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("the code ran",))


@pytest.mark.parametrize("model", ["xai:photo20", SMALL])
def test_a_pickle_that_needs_code_is_refused_and_not_run(model: str, line: CommandLine) -> None:
    torch.save({"state_dict": {"a": Trap()}}, "torch.pt")
    Path("plain.pt").write_bytes(pickle.dumps({"a": Trap()}, protocol=2))
    for name in ("torch.pt", "plain.pt"):
        said = line.refused("explain", "good.png", "--model", model, "--weights", name, names=name)
        assert "mkdir" in said
        assert not Path("the code ran").exists()
    pickle.loads(Path("plain.pt").read_bytes())
    assert Path("the code ran").exists(), "the trap works where it is sprung"


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "empty"), (b"garbage and more garbage", "damaged"), (b"<!DOCTYPE html>", "web page")]
)
def test_a_weights_file_that_is_none(content: bytes, said: str, line: CommandLine) -> None:
    Path("net.pt").write_bytes(content)
    assert said in line.refused("explain", "good.png", "--weights", "net.pt", names="net.pt")


def test_weights_that_are_missing_or_too_many(line: CommandLine) -> None:
    line.refused("explain", "good.png", "--weights", "none.pt", names="none.pt")
    line.refused("explain", "good.png", "--weights", ".", names="folder")
    line.refused("explain", "good.png", "--weights", "random", "--weights", "random", names="2 times")


def test_without_network_the_sentence_names_the_ways_out(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(line.folder))
    said = line.refused("explain", "good.png", "--model", "resnet18", names="resnet18")
    for part in ("--weights FILE", "--weights random", "xai:photo20"):
        assert part in said


# --- options ---
@pytest.mark.parametrize(
    ("words", "names", "near"),
    [
        (["--method", "gradcma"], "'gradcma'", "gradcam"),
        (["--method", "gradcam,salency"], "'salency'", "saliency"),
        (["--method", ""], "none", "--method"),
        (["--layer", "stages.9"], "'stages.9'", "stages.2"),
        (["--layer", "fc"], "'fc'", "stages.2.1"),
        (["--layer", "pool"], "'pool'", "stages.2.1"),
        (["--set", "layer=fc"], "'fc'", "stages.2.1"),
        (["--target", "class:20"], "20", "from 0 to 19"),
        (["--target", "class:-1"], "-1", "from 0 to 19"),
        (["--target", "golfish"], "'golfish'", "goldfish"),
        (["--target", "golfish - tabby"], "golfish", "goldfish"),
        (["--target", "tabby - tabi"], "tabi", "tabby"),
        (["--target", "rank:21"], "21", "from 1 to 20"),
        (["--target", "top0"], "0", "from 1 to 50"),
        (["--target", "label"], "label", "top1"),
        (["--target", "pixel:1,2"], "1,2", "pixel:10,20,0"),
        (["--target", "mask:tabby"], "mask", ""),
        (["--target", ""], "nothing", "--target"),
        (["--set", "samples"], "'samples'", "smoothgrad.samples=20"),
        (["--set", "=3"], "'=3'", "smoothgrad.samples=20"),
        (["--set", "layr=auto"], "layr=auto", "gradcam.layer"),
        (["--set", "saliency.layer=auto"], "saliency.layer=auto", "gradcam"),
        (["--set", "needs=images"], "needs=images", "gradcam.layer"),
        (["--method", "smoothgrad", "--set", "samples=many"], "'many'", "int"),
        (["--method", "smoothgrad", "--set", "samples=0"], "0", "at least 1"),
        (["--method", "smoothgrad", "--set", "samples=2.5"], "'2.5'", "int"),
        (["--memory", "4X"], "'4X'", "4G"),
        (["--memory", "0"], "'0'", "4G"),
        (["--memory", "-4G"], "'-4G'", "4G"),
        (["--memory", "inf"], "'inf'", "4G"),
        (["--memory", "nan"], "'nan'", "4G"),
        (["--seed", "-1"], "-1", "--seed"),
        (["--seed", "seven"], "'seven'", "--seed"),
        (["--seed", "1.5"], "'1.5'", "--seed"),
        (["--save", "gif"], "'gif'", "npy, png, overlay"),
        (["--save", "npy,jpeg"], "'jpeg'", "npy, png, overlay"),
        (["--device", "tpu"], "'tpu'", "auto, cpu, cuda or mps"),
        (["--precision", "float8"], "'float8'", "float32"),
    ],
    ids=lambda value: "=".join(value)[:40] if isinstance(value, list) else "",
)
def test_an_option_with_a_bad_value(words: list[str], names: str, near: str, line: CommandLine) -> None:
    assert near in line.refused("explain", "good.png", *words, names=names)


@pytest.mark.parametrize(("cards", "name"), [(0, "cuda"), (0, "cuda:0"), (1, "cuda:1"), (0, "mps")])
def test_a_device_that_is_not_there(cards: int, name: str, line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "--device auto" in line.refused("explain", "good.png", "--device", name, names=name)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["good.png", "--model", "xai:foto20"], "foto20"),
        (["good.png", "--method", "gradcma"], "gradcma"),
        (["none.png"], "none.png"),
        (["good.png", "--seed", "-1"], "-1"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_dry_run_refuses_alike(words: list[str], names: str, line: CommandLine) -> None:
    line.refused("explain", *words, "--dry-run", names=names)


def test_json_output_stays_empty_where_there_is_nothing_to_tell(line: CommandLine) -> None:
    line.refused("explain", "good.png", "--json", "--target", "class:99", names="99")


# --- writing ---
def test_a_file_stands_where_the_folder_should_be(line: CommandLine) -> None:
    Path("taken").write_text("mine")
    line.refused("explain", "good.png", "--out", "taken", *CPU, names="taken")
    line.refused("explain", "good.png", "--out", "taken/below", *CPU, names="taken/below")
    Path("xai-out").write_text("mine")
    line.refused("explain", "good.png", *CPU, names="xai-out")


def test_a_folder_with_other_peoples_files_is_never_replaced(line: CommandLine) -> None:
    Path("photos").mkdir()
    shutil.copy("good.png", "photos")
    line.refused("explain", "photos", "--out", "photos", *CPU, names="photos")
    line.refused("explain", "good.png", "--out", ".", *CPU, names=".")
    Path("void").mkdir()
    line.fine("explain", "good.png", "--out", "void", *CPU)


def no_permission(*_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_no_write_permission(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", no_permission)
    assert "Permission denied" in line.refused("explain", "good.png", "--out", "closed", *CPU, names="closed")


def test_a_picture_without_read_permission(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xai.image_sources.decode", no_permission)
    assert "permission" in line.refused("explain", "good.png", names="good.png")


def full(*arguments: Any, **_: Any) -> Any:
    """Half a file, and then there is no room."""
    for argument in arguments:
        if isinstance(argument, Path) and argument.suffix and not argument.is_dir():
            with argument.open("wb") as file:
                file.write(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for(real: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`real`, and `full` for paths that end in `name`."""
    return lambda path, *more, **named: (full if str(path).endswith(name) else real)(path, *more, **named)


MOMENTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "folder": (tempfile, "mkdtemp", lambda _: full),
    "arrays": ("xai.result", "write_arrays", lambda _: full),
    "record": (Path, "write_text", lambda real: full_for(real, "result.json")),
    "maps": (np, "save", lambda _: full),
    "pictures": (Path, "write_bytes", lambda real: full_for(real, "map.png")),
    "page": (Path, "write_bytes", lambda real: full_for(real, "index.html")),
    "rename": (os, "replace", lambda real: full_for(real, ".part")),
}


@pytest.mark.parametrize("older", [False, True], ids=["new", "in place of an older result"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_full_disk_leaves_everything_as_it_was(
    moment: str, older: bool, line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if older:
        line.fine("explain", "good.png", "--out", "here", *CPU)
    place, name, change = MOMENTS[moment]
    place = sys.modules[place] if isinstance(place, str) else place
    monkeypatch.setattr(place, name, change(getattr(place, name)))
    words = ["--method", "saliency", "--save", "npy,png", "--out", "here"]
    said = line.refused("explain", "good.png", *words, *CPU, names="here")
    assert "No space left on device" in said
    assert "--out" in said


def test_a_full_disk_when_several_results_are_written(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", full_for(Path.write_text, "run.json"))
    line.refused("explain", "good.png", "--method", "gradcam,saliency", *CPU, names="xai-out")


@pytest.mark.parametrize("limit", [1_000, 40_000])
def test_a_real_limit_on_the_size_of_files(limit: int, line: CommandLine) -> None:
    """The system itself refuses: the library that writes the arrays says so in its own way."""

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    before = snapshot(line.folder)
    done = subprocess.run([*XAI, "explain", "good.png", *CPU], cwd=line.folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
                          preexec_fn=small, timeout=120, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "File too large" in sentence(done.stderr, "xai-out")
    assert snapshot(line.folder) == before


def test_a_finished_result_survives_a_second_run_that_fails(line: CommandLine) -> None:
    line.fine("explain", "good.png", "--out", "here", *CPU)
    for words in (["none.png"], ["good.png", "--target", "class:99"], ["good.png", "--model", "xai:foto20"]):
        line.refused("explain", *words, "--out", "here", *CPU, names="")
    line.fine("report", "here")


# --- report ---
def test_report_of_a_folder_that_is_none_of_ours(line: CommandLine) -> None:
    Path("void").mkdir()
    for name in ("none", "void", "good.png", "."):
        said = line.refused("report", name, names=name)
        assert "xai-out" in said
        assert line.refused("report", name, "--csv", names=name) == said


RECORDS: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda _: "",
    "not an object": lambda _: "[]",
    "nothing in it": lambda _: "{}",
    "version alone": lambda _: '{"schema_version": 1}',
    "newer": lambda text: text.replace('"schema_version": 1', '"schema_version": 99'),
    "other type": lambda text: text.replace('"analyzer": "gradcam"', '"analyzer": [3]'),
    "unknown panel": lambda text: text.replace('"kind": "heatmap"', '"kind": "hologram"'),
    "other array": lambda text: text.replace('"panels.0.pixels"', '"panels.77.pixels"'),
    "no text": lambda _: "\x00\x01",
}


@pytest.mark.parametrize("damage", RECORDS)
def test_report_of_a_damaged_record(damage: str, line: CommandLine) -> None:
    line.fine("explain", "good.png", "--out", "here", *CPU)
    path = Path("here/result.json")
    text = RECORDS[damage](path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    line.refused("report", "here", names="here")
    line.refused("report", "here", "--csv", names="here")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": 1, "title": 3}'])
def test_report_of_a_damaged_run(text: str, line: CommandLine) -> None:
    line.fine("explain", "good.png", "--out", "here", "--method", "gradcam,saliency", *CPU)
    Path("here/run.json").write_text(text)
    line.refused("report", "here", names="here")


def test_report_of_a_run_that_points_elsewhere_or_lacks_a_result(line: CommandLine) -> None:
    line.fine("explain", "good.png", "--out", "here", "--method", "gradcam,saliency", *CPU)
    path = Path("here/run.json")
    for name in ("../elsewhere", "/etc", "gone"):
        path.write_text(path.read_text().replace('"photo20__gradcam"', f'"{name}"'))
        line.refused("report", "here", names=name)
        path.write_text(path.read_text().replace(f'"{name}"', '"photo20__gradcam"'))
    line.fine("report", "here")


@pytest.mark.parametrize("keep", [None, 0, 100, 3000], ids=["missing", "empty", "cut in its header", "cut"])
def test_report_of_a_record_whose_arrays_are_missing_or_cut(keep: int | None, line: CommandLine) -> None:
    line.fine("explain", "good.png", "--out", "here", *CPU)
    path = Path("here/arrays.safetensors")
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[:keep])
    said = line.refused("report", "here", names="here/arrays.safetensors")
    assert "Make the result again" in said


@pytest.mark.parametrize("name", ["index.html", "map.png"])
def test_report_on_a_full_disk_leaves_the_older_page(
    name: str, line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.fine("explain", "good.png", "--out", "here", *CPU)
    monkeypatch.setattr(Path, "write_bytes", full_for(Path.write_bytes, name))
    assert "No space left on device" in line.refused("report", "here", names="here")


# --- text from outside on the page ---
class Tags(html.parser.HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def harmless(page: Path, shown: list[str]) -> None:
    """The page shows these texts as text, and holds no element or handler that came with them."""
    tags = Tags(page.read_text())
    for text in shown:
        assert text in tags.words, text
    for tag, attributes in tags.elements:
        assert tag not in ("marquee", "iframe", "object", "embed", "base", "form"), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert attributes.get("src") != "x", (tag, attributes)
        assert not str(attributes.get("href", "")).startswith("javascript:")
    assert sum(tag == "script" for tag, _ in tags.elements) <= 1, "the page's own"


EVIL = "<img src=x onerror=alert(1)>"


def test_file_names_labels_and_class_names_are_escaped_on_the_page(line: CommandLine) -> None:
    folder = Path("photos", "<marquee>label")
    folder.mkdir(parents=True)
    shutil.copy("good.png", folder / f"{EVIL}.png")
    (folder / '"><script>alert(2)<!--.png').write_text("no picture")
    Path("names.txt").write_text("</title><script>alert(3)\n' onload='alert(4)<iframe>\n")
    model = f"file:net.py:cnn?{NORMAL}&labels=names.txt"
    done = line("explain", "photos", "--model", model, *CPU)
    assert done.code == 1
    harmless(done.folder / "index.html", [f"{EVIL}.png", "</title><script>alert(3)", "' onload='alert(4)<iframe>",
                                          '"><script>alert(2)<!--.png'])  # fmt: skip
    record = json.loads((done.folder / "result.json").read_text())
    assert record["images"][0]["label"] == "<marquee>label"
    line("report", done.folder)
    harmless(done.folder / "index.html", [f"{EVIL}.png"])


def test_one_picture_with_an_evil_name_gives_a_harmless_page_and_a_plain_folder(line: CommandLine) -> None:
    shutil.copy("good.png", f"{EVIL}.png")
    done = line.fine("explain", f"{EVIL}.png", *CPU)
    assert re.fullmatch(r"img-src-x-onerror-alert-1-photo20-gradcam-[0-9a-f]{8}", done.folder.name)
    harmless(done.folder / "index.html", [f"{EVIL}.png"])
    assert json.loads((done.folder / "result.json").read_text())["images"][0]["name"] == f"{EVIL}.png"


def test_the_names_of_models_weights_and_settings_are_escaped_on_the_page(line: CommandLine) -> None:
    shutil.copy("net.py", f"{EVIL}.py")
    with load(f"file:net.py:cnn?{NORMAL}", device="cpu").opened() as module:
        save_file(dict(module.state_dict()), f"{EVIL}.safetensors")
    model = ["--model", f"file:{EVIL}.py:cnn?{NORMAL}", "--weights", f"{EVIL}.safetensors"]
    harmless(line.fine("explain", "good.png", *model, *CPU).folder / "index.html", [f"{EVIL}.py"])
    bad = ["--model", f"xai:{EVIL}", "--model", "xai:photo20"]
    done = line("explain", "good.png", *bad, *CPU)
    assert done.code == 1
    harmless(done.folder / "index.html", [EVIL])


def test_no_two_bad_inputs_at_once_make_a_traceback(line: CommandLine) -> None:
    wrong = {"--model": "xai:foto20", "--method": "gradcma", "--target": "goldfsh"}
    wrong |= {f"--{name}": "x" for name in ("seed", "memory", "save", "device", "precision", "layer", "set", "weights")}
    for first, second in itertools.combinations(wrong, 2):
        line.refused("explain", "good.png", first, wrong[first], second, wrong[second], names="")
