"""Writing a record: whole or not at all, the older one safe until then, and nobody else's folder ever replaced."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sample_records import result
from xai.errors import XaiError
from xai.result import Result, atomic_folder


def old_folder(where: Path) -> Path:
    """A folder that looks like one of ours."""
    where.mkdir(parents=True)
    (where / "result.json").write_text("old")
    (where / "index.html").write_text("old page")
    return where


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_half(folder: Path, problem: BaseException) -> None:
    """Begin to write, then fail."""
    with atomic_folder(folder) as new:
        (new / "result.json").write_text("half")
        raise problem


OLD = {"index.html": "old page", "result.json": "old"}


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a" / "b" / "out") as new:
        (new / "result.json").write_text("new")
        assert not (tmp_path / "a" / "b" / "out").exists()
    assert content(tmp_path) == {"a/b/out/result.json": "new"}
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["out"]


def test_an_older_folder_stays_until_the_new_one_is_complete_and_then_goes_as_a_whole(tmp_path: Path) -> None:
    out = old_folder(tmp_path / "out")
    with atomic_folder(out) as new:
        (new / "result.json").write_text("new")
        assert content(out) == OLD
    assert content(tmp_path) == {"out/result.json": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, MemoryError, XaiError, SystemExit])
def test_a_failure_inside_leaves_the_older_folder_alone(problem: type[BaseException], tmp_path: Path) -> None:
    out = old_folder(tmp_path / "out")
    with pytest.raises(problem, match="stop"):
        write_half(out, problem("stop"))
    assert content(out) == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failure_inside_leaves_no_new_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"):
        write_half(tmp_path / "out", ValueError("stop"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path) -> None:
    out = old_folder(tmp_path / "out")
    sentence = "the output folder must be writable; got .*out: No space left on device. Name another place with --out"
    with pytest.raises(XaiError, match=sentence):
        write_half(out, OSError(28, os.strerror(28)))
    assert content(out) == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def failing(real: Callable[[str | Path, str | Path], None], number: int,
            problem: BaseException) -> Callable[[str | Path, str | Path], None]:  # fmt: skip
    """os.replace, which fails at its call of that number."""
    calls = 0

    def replace(source: str | Path, target: str | Path) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise problem
        real(source, target)

    return replace


@pytest.mark.parametrize("number", [1, 2])
def test_a_failure_at_the_swap_puts_the_older_folder_back(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = old_folder(tmp_path / "out")
    monkeypatch.setattr(os, "replace", failing(os.replace, number, PermissionError(13, "Permission denied")))
    with pytest.raises(XaiError, match="must be writable; got .*Permission denied"), atomic_folder(out) as new:
        (new / "result.json").write_text("new")
    assert content(out) == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_at_the_swap_puts_the_older_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = old_folder(tmp_path / "out")
    monkeypatch.setattr(os, "replace", failing(os.replace, 2, KeyboardInterrupt("stop")))
    with pytest.raises(KeyboardInterrupt, match="stop"), atomic_folder(out) as new:
        (new / "result.json").write_text("new")
    assert content(out) == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(XaiError, match="must be writable; got .*out: a file of that name stands there"):
        result().save(tmp_path / "out")
    assert content(tmp_path) == {"out": "mine"}
    with pytest.raises(XaiError, match="the output folder must be writable; got .*out/below"):
        result().save(tmp_path / "out" / "below")
    assert content(tmp_path) == {"out": "mine"}


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "2024").mkdir(parents=True)
    (photos / "2024" / "wedding.jpg").write_text("the only copy")
    sentence = "must be new, empty, or one that xai wrote; got .*photos, which holds other files. Name another place"
    with pytest.raises(XaiError, match=sentence):
        result().save(photos)
    assert content(tmp_path) == {"photos/2024/wedding.jpg": "the only copy"}


@pytest.mark.parametrize("name", ["result.json", "run.json", None])
def test_an_empty_folder_or_one_of_ours_is_replaced(name: str | None, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    if name:
        (tmp_path / "out" / name).write_text("old")
    result().save(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["arrays.safetensors", "result.json"]


@pytest.mark.parametrize("there", [True, False], ids=["to a folder", "to nothing"])
def test_a_link_keeps_pointing_to_what_is_written(there: bool, tmp_path: Path) -> None:
    if there:
        old_folder(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    result().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(p.name for p in (tmp_path / "real").iterdir()) == ["arrays.safetensors", "result.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


def test_a_record_that_cannot_be_made_leaves_the_older_one(tmp_path: Path) -> None:
    good = result().save(tmp_path / "out")
    before = {p.name: p.read_bytes() for p in good.iterdir()}
    with pytest.raises(XaiError, match="must be made of what a record can hold; got version: Input should be a valid"):
        dataclasses.replace(result(), version="three").save(good)
    assert {p.name: p.read_bytes() for p in good.iterdir()} == before
    assert Result.load(good).version == 1


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    folder = result().save(tmp_path / "out")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    for path in folder.iterdir():
        assert path.stat().st_mode & stat.S_IROTH, path.name


def test_a_long_name_is_a_folder_too(tmp_path: Path) -> None:
    folder = tmp_path / ("ü" * 120)
    assert Result.load(result().save(folder)).analyzer == "gradcam"
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
