"""`xai fourier` as processes: the same records as `xai analyze`, pages, counts, and refusals in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

from tests.command_line import NETS, NORMAL, process, sentence
from xai.result import Result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `real/` (and a broken file), `made/` (enlarged), `nets.py`."""
    where = tmp_path_factory.mktemp("fourier")
    rng = np.random.default_rng(0)
    for name in ("real", "made"):
        (where / name).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            if name == "made":
                pixels = pixels[::2, ::2].repeat(2, 0).repeat(2, 1)
            Pil.fromarray(pixels).save(where / name / f"{i:02}.png")
    (where / "real" / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (where / "nets.py").write_text(NETS)
    return where


def content(result: Result) -> tuple[Any, dict[str, bytes]]:
    record, arrays = result.record()
    for key in ("cost", "provenance"):
        record.pop(key)
    return record, {name: values.tobytes() for name, values in arrays.items()}


def test_two_folders_are_compared_and_the_record_is_that_of_analyze(place: Path) -> None:
    done = process("fourier", "images", "real", "made", "--out", "one", folder=place)
    assert done.returncode == 1, done.stderr  # one picture is broken, and named
    assert "broken.jpg" in done.stderr
    same = process("analyze", "fourier_images", "--data", "real", "--data", "made", "--out", "two", folder=place)
    assert same.returncode == 1, same.stderr
    first, second = Result.load(place / "one"), Result.load(place / "two")
    assert content(first) == content(second)
    counts = next(panel for panel in first.panels if panel.key == "counts")
    assert [row[:2] for row in counts.rows] == [("real", 12), ("made", 12)]
    page = (place / "one" / "index.html").read_text(encoding="utf-8")
    assert "broken.jpg" in page
    assert "Do not trust such a detector" in page
    assert first.provenance.command == "xai fourier images real made --out one"


def test_one_folder_settings_and_npr(place: Path) -> None:
    done = process("fourier", "images", "made", "--json", "--set", "size=16", "--out", "three", folder=place)
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert record["analyzer"] == "fourier_images"
    assert record["parameters"]["size"] == 16
    done = process("fourier", "images", "made", "--npr", "--quiet", "--out", "four", folder=place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    table = next(panel for panel in Result.load(place / "four").panels if panel.key == "places")
    assert {row[6] for row in table.rows} == {1.0}


def test_two_models_on_one_page(place: Path) -> None:
    spec = f"file:nets.py:cnn?{NORMAL}"
    done = process("fourier", "model", spec, f"file:nets.py:mlp?{NORMAL}", "--data", "made", "--set", "side=5",
                   "--out", "five", folder=place)
    assert done.returncode == 0, done.stderr
    result = Result.load(place / "five")
    assert {"heat-0", "heat-1", "difference", "low-pass", "share-0"} <= {panel.key for panel in result.panels}
    assert (place / "five" / "index.html").is_file()
    plan = process("fourier", "model", spec, "--data", "made", "--set", "side=5", "--dry-run", folder=place)
    assert plan.returncode == 0, plan.stderr
    assert "fourier_model" in plan.stdout


@pytest.mark.parametrize(("words", "names"), [
    (("fourier", "images", "nowhere"), "nowhere"),
    (("fourier", "model", "xai:tinyvgg"), "--data"),
])
def test_refusals_are_one_sentence(place: Path, words: tuple[str, ...], names: str) -> None:
    done = process(*words, folder=place)
    assert (done.returncode, done.stdout) == (2, "")
    sentence(done.stderr, names)
