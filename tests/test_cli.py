"""The command line: every command and option, what it prints, the folder it writes, its exit code, Ctrl-C."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import xai
from tests.command_line import (
    NETS,
    NORMAL,
    ROOT,
    XAI,
    CommandLine,
    no_traceback,
    process,
    same_maps,
    sentence,
    snapshot,
    unfinished,
)
from xai import catalog, cli
from xai.zoo.shipped import SHIPPED

CPU = ["--device", "cpu"]
CODE = "import sys; sys.argv[0] = 'xai'; import xai.cli as cli; {}; code = cli.main(); {}; sys.exit(code)"


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """`xai` in a folder with two pictures in a folder, and a third."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in ("photos/one.png", "photos/two.png", "three.png"):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "net.py").write_text(NETS)
    return CommandLine(tmp_path, monkeypatch, capfd)


def record(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


def run_record(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())


# --- explain ---
def test_one_picture_gives_a_folder_with_a_telling_name(line: CommandLine) -> None:
    done = line.fine("explain", "three.png", *CPU)
    assert re.fullmatch(r"xai-out/three-photo20-gradcam-[0-9a-f]{8}/index\.html\n", done.out)
    names = {path.name for path in done.folder.iterdir()}
    assert names == {"index.html", "result.json", "arrays.safetensors", "pictures"}
    assert len(list((done.folder / "pictures").glob("*.png"))) == 1
    assert done.folder.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in Path("xai-out").iterdir()] == [done.folder.name]


def test_the_same_command_twice_gives_the_same_folder(line: CommandLine) -> None:
    first = line.fine("explain", "three.png", *CPU)
    arrays = (first.folder / "arrays.safetensors").read_bytes()
    (first.folder / "index.html").write_text("an older page")
    second = line.fine("explain", "three.png", *CPU)
    assert second.out == first.out
    assert (second.folder / "arrays.safetensors").read_bytes() == arrays
    assert "an older page" not in (second.folder / "index.html").read_text()
    assert len(list(Path("xai-out").iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        ["--seed", "1"],
        ["--target", "rank:2"],
        ["--precision", "float64"],
        ["--weights", "random"],
        ["--layer", "stages.1"],
    ],
    ids=lambda words: words[0],
)
def test_whatever_changes_the_numbers_changes_the_name(change: list[str], line: CommandLine) -> None:
    assert line.fine("explain", "three.png", *CPU).folder != line.fine("explain", "three.png", *CPU, *change).folder


def test_several_pictures_named_in_a_folder_or_by_a_pattern_come_on_one_page(line: CommandLine) -> None:
    folders = [line.fine("explain", *words, *CPU).folder for words in (["photos"], ["photos/*.png"], sorted_pictures())]
    assert len(set(folders)) == 1, "the same pictures, so the same run"
    assert folders[0].name.startswith("2-pictures-photo20-gradcam-")
    assert [image["name"] for image in record(folders[0])["images"]] == ["one.png", "two.png"]
    page = (folders[0] / "index.html").read_text()
    assert "one.png" in page
    assert "two.png" in page


def sorted_pictures() -> list[str]:
    return sorted(str(path) for path in Path("photos").iterdir())


@pytest.mark.parametrize("words", [["--method", "gradcam,saliency"], ["--method", "gradcam", "--method", "saliency"]])
def test_several_methods_come_on_one_page(words: list[str], line: CommandLine) -> None:
    done = line.fine("explain", "three.png", *words, *CPU)
    assert done.folder.name.startswith("three-photo20-2-methods-")
    assert run_record(done.folder)["results"] == ["photo20__gradcam", "photo20__saliency"]
    assert [record(done.folder / name)["analyzer"] for name in run_record(done.folder)["results"]] == [
        "gradcam",
        "saliency",
    ]
    page = (done.folder / "index.html").read_text()
    assert "Grad-CAM" in page
    assert "Saliency" in page
    assert not list(done.folder.glob("*/index.html"))


def test_several_models_come_on_one_page(line: CommandLine) -> None:
    own = f"file:net.py:cnn?{NORMAL}"
    done = line.fine("explain", "photos", "--model", "xai:photo20", "-m", own, *CPU)
    assert done.folder.name.startswith("2-pictures-2-models-gradcam-")
    results = run_record(done.folder)["results"]
    assert [record(done.folder / name)["models"][0]["spec"] for name in results] == ["xai:photo20", own]
    page = (done.folder / "index.html").read_text()
    assert "xai:photo20" in page
    assert "file:net.py:cnn" in page
    assert record(done.folder / results[1])["models"][0]["runs_code"] is True


def test_out_names_the_folder_and_replaces_an_older_result_whole(line: CommandLine) -> None:
    assert line.fine("explain", "three.png", "--out", "deep/here", "--method", "gradcam,saliency", *CPU).out == (
        "deep/here/index.html\n"
    )
    assert line.fine("explain", "three.png", "--out", "deep/here", *CPU).out == "deep/here/index.html\n"
    assert {path.name for path in Path("deep/here").iterdir()} == {
        "index.html",
        "result.json",
        "arrays.safetensors",
        "pictures",
    }
    assert [path.name for path in Path("deep").iterdir()] == ["here"]
    assert not Path("xai-out").exists()


def test_save_exports_the_maps(line: CommandLine) -> None:
    done = line.fine("explain", "three.png", "--save", "npy,png, overlay", *CPU)
    digest = record(done.folder)["images"][0]["hash"]
    raw = np.load(done.folder / f"{digest}-map.npy")
    assert raw.dtype == np.float32
    assert raw.shape == (8, 8)
    with Image.open(done.folder / f"{digest}-map.png") as picture:
        assert picture.size == (8, 8)
    assert (done.folder / f"{digest}-map-overlay.png").exists()


@pytest.mark.parametrize("words", [["--set", "smoothgrad.samples=3"], ["--set", "samples=3"]])
def test_set_reaches_the_method_that_has_the_parameter(words: list[str], line: CommandLine) -> None:
    done = line.fine("explain", "three.png", "--method", "smoothgrad,gradcam", *words, *CPU)
    assert record(done.folder / "photo20__smoothgrad")["parameters"]["samples"] == 3
    assert "samples" not in record(done.folder / "photo20__gradcam")["parameters"]


def test_layer_is_looked_at(line: CommandLine) -> None:
    done = line.fine("explain", "three.png", "--layer", "stages.1", *CPU)
    assert record(done.folder)["models"][0]["layer"].startswith("stages.1")
    assert record(done.folder)["models"][0]["grid"] == [16, 16]


def test_random_weights_are_marked_in_the_record_and_on_the_page(line: CommandLine) -> None:
    done = line.fine("explain", "three.png", "--weights", "random", *CPU)
    assert record(done.folder)["models"][0]["random_weights"] is True
    assert record(done.folder)["models"][0]["weights"] == "random (seed 0)"
    assert "Random weights." in (done.folder / "index.html").read_text()
    trained = line.fine("explain", "three.png", *CPU)
    assert record(trained.folder)["models"][0]["random_weights"] is False
    assert "Random weights." not in (trained.folder / "index.html").read_text()


def test_device_precision_and_seed_go_into_the_record(line: CommandLine) -> None:
    done = line.fine("explain", "three.png", "--precision", "bfloat16", "--seed", "7", *CPU)
    told = record(done.folder)["provenance"]
    assert (told["device"], told["precision"], told["seed"]) == ("cpu", "bfloat16", 7)
    plain = record(line.fine("explain", "three.png", *CPU).folder)["provenance"]
    assert (plain["precision"], plain["seed"]) == ("float32", 0)
    assert plain["versions"]["torch"]
    assert record(line.fine("explain", "three.png").folder)["provenance"]["device"] != "auto"


# --- targets ---
def test_a_class_name_is_a_target(line: CommandLine) -> None:
    for text in ("goldfish", "GoldFish", "class:5"):
        done = line.fine("explain", "three.png", "--target", text, *CPU)
        assert record(done.folder)["target"] == text
        assert record(done.folder)["images"][0]["target"] == "goldfish"


def test_top3_is_three_targets_on_one_page(line: CommandLine) -> None:
    done = line.fine("explain", "three.png", "--target", "top3", *CPU)
    results = run_record(done.folder)["results"]
    assert results == ["photo20__gradcam__rank-1", "photo20__gradcam__rank-2", "photo20__gradcam__rank-3"]
    records = [record(done.folder / name) for name in results]
    table = next(panel for panel in records[0]["panels"] if panel["key"] == "predictions")
    assert [r["images"][0]["target"] for r in records] == [row[0] for row in table["rows"][:3]]


def test_a_contrast_is_the_difference_of_its_two_classes(line: CommandLine) -> None:
    spoken = {}
    for text in ("tabby", "goldfish", "tabby - goldfish"):
        words = ["three.png", "--method", "input_x_gradient", "--target", text, "--save", "npy"]
        done = line.fine("explain", *words, *CPU)
        spoken[text] = np.load(next(done.folder.glob("*.npy")))
    assert record(done.folder)["target"] == "tabby - goldfish"
    difference = spoken["tabby"] - spoken["goldfish"]
    scale = np.abs(difference).max()
    np.testing.assert_allclose(spoken["tabby - goldfish"] / scale, difference / scale, atol=1e-4)


# --- replay ---
@pytest.mark.parametrize(
    "words",
    [
        ["three.png"],
        ["photos", "--method", "smoothgrad", "--set", "samples=4", "--seed", "3", "--target", "goldfish"],
        ["three.png", "--target", "tabby - German shepherd", "--precision", "bfloat16", "--layer", "stages.1"],
        ["a b's.png", "--weights", "random", "--memory", "1M"],
    ],
    ids=["plain", "seeded", "contrast", "quoted"],
)
def test_the_replay_command_of_the_record_gives_the_same_maps_to_the_bit(words: list[str], line: CommandLine) -> None:
    shutil.copy("three.png", "a b's.png")
    first = line.fine("explain", *words, *CPU)
    command = shlex.split(record(first.folder)["provenance"]["command"])
    assert command == ["xai", "explain", *words, *CPU]
    shutil.copytree(first.folder, "kept")
    shutil.rmtree(first.folder)
    again = line.fine(*command[1:])
    assert again.folder == first.folder
    same_maps(again.folder, Path("kept"))


def test_what_python_did_is_replayed_by_the_command_in_its_record(line: CommandLine) -> None:
    xai.explain("xai:photo20", "three.png", "smoothgrad", target="goldfish", out="mine", device="cpu", seed=5,
                precision="bfloat16", weights=("random",), settings={"samples": "3"}, memory_bytes=1 << 20)  # fmt: skip
    command = shlex.split(record(Path("mine"))["provenance"]["command"])
    assert command[0] == "xai"
    same_maps(line.fine(*command[1:]).folder, Path("mine"))


def test_python_and_the_command_line_write_the_same_maps(line: CommandLine) -> None:
    xai.explain("xai:photo20", "three.png", "gradcam", out="mine", device="cpu")
    same_maps(line.fine("explain", "three.png", *CPU).folder, Path("mine"))


# --- analyze ---
def test_analyze_is_the_same_by_another_name(line: CommandLine) -> None:
    explained = line.fine("explain", "three.png", *CPU)
    shutil.copytree(explained.folder, "kept")
    analyzed = line.fine("analyze", "gradcam", "--model", "xai:photo20", "--data", "three.png", *CPU)
    assert analyzed.folder == explained.folder
    same_maps(analyzed.folder, Path("kept"))
    assert record(analyzed.folder)["provenance"]["command"].startswith("xai analyze gradcam ")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["gradcam", "--data", "three.png"], "the model must be named"),
        (["gradcam", "--model", "xai:photo20"], "the pictures must be given"),
        (["gradcm", "--model", "xai:photo20"], "Did you mean gradcam"),
    ],
)
def test_analyze_says_what_is_missing(words: list[str], what: str, line: CommandLine) -> None:
    assert what in line.refused("analyze", *words, names="got")


# --- what is printed ---
def test_json_prints_the_record_alone(line: CommandLine) -> None:
    done = line.fine("explain", "three.png", "--json", *CPU)
    told = json.loads(done.out)
    folder = next(Path("xai-out").iterdir())
    assert told == record(folder)
    many = json.loads(line.fine("explain", "three.png", "--json", "--method", "gradcam,saliency", *CPU).out)
    assert [one["analyzer"] for one in many] == ["gradcam", "saliency"]


def test_quiet_prints_nothing(line: CommandLine) -> None:
    done = line.fine("explain", "three.png", "--quiet", *CPU)
    assert done.out == ""
    assert len(list(Path("xai-out").iterdir())) == 1


def test_a_name_with_stray_bytes_is_explained_and_told(line: CommandLine) -> None:
    os.rename(b"three.png", b"\xff.png")
    done = line.fine("explain", os.fsdecode(b"\xff.png"), "--json", *CPU)
    assert json.loads(done.out)["images"][0]["name"] == "\ufffd.png"


def test_version_prints_the_environment(line: CommandLine) -> None:
    told = line.fine("--version").out
    words = dict(text.split(" ", 1) for text in told.splitlines())
    assert words["python"] == ".".join(map(str, sys.version_info[:3]))
    for name in ("xai-toolkit", "torch", "torchvision", "timm", "numpy", "system", "cuda"):
        assert words[name]


def test_dry_run_prints_the_plan_and_writes_nothing(line: CommandLine) -> None:
    before = snapshot(line.folder)
    words = ["photos", "--method", "gradcam,smoothgrad", "--set", "samples=5", "--target", "top3", *CPU]
    table = line.fine("explain", *words, "--dry-run").out
    rows = json.loads(line.fine("explain", *words, "--dry-run", "--json").out)
    assert snapshot(line.folder) == before
    assert [(row["method"], row["target"]) for row in rows] == [
        ("(shared forward)", ""),
        *((method, f"rank:{rank}") for method in ("gradcam", "smoothgrad") for rank in (1, 2, 3)),
    ]
    costs = {row["method"]: (row["pictures"], row["forwards"], row["backwards"]) for row in rows}
    assert costs == {"(shared forward)": (2, 2, 0), "gradcam": (2, 0, 2), "smoothgrad": (2, 10, 10)}
    last = table.splitlines()[-1].split()
    assert last[-3:] == ["32", "36", str(sum(row["checks"] for row in rows))], "forwards, backwards and checks in all"
    for word in ("forwards", "backwards", "xai:photo20", "smoothgrad", "rank:3"):
        assert word in table


@pytest.mark.parametrize("method", ["gradcam", "smoothgrad", "saliency"])
def test_what_dry_run_plans_is_what_the_run_counts(method: str, line: CommandLine) -> None:
    words = ["explain", "photos", "--method", method, "--json", *CPU]
    shared, row = json.loads(line.fine(*words, "--dry-run").out)
    cost = json.loads(line.fine(*words).out)["cost"]
    assert cost["forwards"] == shared["forwards"] + row["forwards"]
    assert cost["backwards"] == row["backwards"]
    assert cost["check_forwards"] + cost["check_backwards"] == row["checks"] > 0


def test_dry_run_of_a_method_that_needs_a_model_asks_for_one(line: CommandLine) -> None:
    done = line("analyze", "activation_maximization", "--dry-run")
    assert done.code == 2
    assert "the model must be named for activation_maximization; got none. Name one with --model." in done.err


# --- exit codes where some of several things are bad ---
def test_a_bad_picture_among_several_is_named_and_the_others_run(line: CommandLine) -> None:
    Path("photos/bad.png").write_text("no picture at all")
    pictures = ["photos/bad.png", "photos/one.png", "photos/two.png"]
    for words in (["photos"], ["photos/*.png"], pictures, [*pictures, "none.png"]):
        done = line("explain", *words, *CPU)
        assert done.code == 1
        lines = done.err.splitlines()
        bad = ["bad.png", "none.png"] if "none.png" in words else ["bad.png"]
        assert len(lines) == len(bad)
        page = (done.folder / "index.html").read_text()
        for name in bad:
            assert any(text.startswith("xai: ") and name in text and " must be " in text for text in lines)
            assert name in page
        assert {failure["name"] for failure in run_record(done.folder)["failures"]} == set(bad)
        assert [image["name"] for image in record(done.folder)["images"]] == ["one.png", "two.png"]
        assert not unfinished(line.folder)


def test_where_all_of_several_pictures_are_bad_nothing_is_written(line: CommandLine) -> None:
    Path("bad.png").write_text("no picture at all")
    line.refused("explain", "bad.png", "none.png", names=".png")


def test_a_bad_model_among_several_is_named_and_the_other_runs(line: CommandLine) -> None:
    done = line("explain", "three.png", "--model", "xai:foto20", "--model", "xai:photo20", *CPU)
    assert done.code == 1
    assert "xai:photo20" in sentence(done.err, "foto20"), "near names are offered"
    assert "foto20" in (done.folder / "index.html").read_text()
    assert record(done.folder)["models"][0]["spec"] == "xai:photo20"


def test_a_method_that_cannot_run_on_the_model_is_named_and_the_other_runs(line: CommandLine) -> None:
    spec = f"file:net.py:mlp?{NORMAL}"
    done = line("explain", "three.png", "--model", spec, "--method", "gradcam,saliency", *CPU)
    assert done.code == 1
    sentence(done.err, "gradcam")
    assert record(done.folder)["analyzer"] == "saliency"
    assert "gradcam" in run_record(done.folder)["failures"][0]["name"]
    assert "gradcam" in (done.folder / "index.html").read_text()
    line.refused("explain", "three.png", "--model", spec, "--method", "gradcam", *CPU, names="layer")


# --- lists ---
def test_methods_list_names_every_method(line: CommandLine) -> None:
    told = line.fine("methods", "list").out
    for name, entry in catalog.entries().items():
        assert re.search(rf"^  {name} +{re.escape(entry.summary)}$", told, re.MULTILINE)
    names = [row["name"] for row in json.loads(line.fine("methods", "list", "--json").out)]
    assert names == list(catalog.entries())


def test_methods_info_tells_formula_parameters_and_source(line: CommandLine) -> None:
    told = line.fine("methods", "info", "smoothgrad").out
    for part in ("samples = 50", "--set smoothgrad.KEY=VALUE", "arXiv:1706.03825", "gradients"):
        assert part in told
    assert json.loads(line.fine("methods", "info", "smoothgrad", "--json").out)["name"] == "smoothgrad"
    assert "Did you mean smoothgrad" in line.refused("methods", "info", "smothgrad", names="'smothgrad'")


def test_models_list_filters_by_name_and_source(line: CommandLine) -> None:
    assert "xai:photo20" in line.fine("models", "list").out.splitlines()
    found = line.fine("models", "list", "resnet50", "--source", "torchvision").out.splitlines()
    assert "torchvision:resnet50" in found
    assert all(name.startswith("torchvision:") and "resnet50" in name for name in found)
    assert json.loads(line.fine("models", "list", "resnet50", "--source", "torchvision", "--json").out) == found
    line.refused("models", "list", "--source", "keras", names="'keras'")


def test_models_info_prints_every_answer_with_its_reason(line: CommandLine) -> None:
    told = line.fine("models", "info", "xai:photo20").out
    for part in ("stages.2.1", "layer reason", "classes (20)", "head reason", "preprocessing reason", "1712996"):
        assert part in told
    assert re.search(r"^class names +tabby, German shepherd, ", told, re.MULTILINE)
    card = json.loads(line.fine("models", "info", "xai:photo20", "--json").out)
    assert card["layer"] == "stages.2.1"
    assert len(card["labels"]) == 20
    assert json.loads(line.fine("models", "info", "photo20", "--weights", "random", "--json").out)["random_weights"]
    assert "xai:photo20" in line.refused("models", "info", "foto20", names="'foto20'")


# --- report ---
def test_report_draws_the_page_again_from_the_record(line: CommandLine) -> None:
    for words in (["three.png"], ["photos", "--method", "gradcam,saliency"]):
        folder = line.fine("explain", *words, *CPU).folder
        before = snapshot(folder)
        (folder / "index.html").unlink()
        for picture in folder.rglob("pictures/*.png"):
            picture.write_bytes(b"damaged")
        assert line.fine("report", folder).out == f"{folder}/index.html\n"
        assert snapshot(folder) == before


def test_report_csv_prints_a_row_for_each_picture_and_method(line: CommandLine) -> None:
    folder = line.fine("explain", "photos", "--method", "gradcam,saliency", *CPU).folder
    before = snapshot(folder)
    rows = list(csv.DictReader(io.StringIO(line.fine("report", folder, "--csv").out)))
    assert [(row["method"], row["picture"]) for row in rows] == [
        (method, picture) for method in ("gradcam", "saliency") for picture in ("one.png", "two.png")
    ]
    assert all(row["model"] == "xai:photo20" and float(row["probability"]) <= 1 for row in rows)
    assert snapshot(folder) == before


# --- a wrong command line ---
@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["explian"], "explian"),
        (["explain"], "images"),
        (["explain", "three.png", "--methods", "gradcam"], "--methods"),
        (["explain", "three.png", "--seed"], "--seed"),
        (["report"], "folder"),
        (["report", "a", "b"], "b"),
        (["methods", "info"], "name"),
        (["models", "lst"], "lst"),
        (["--verison"], "--verison"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_gets_a_sentence_that_names_the_help(
    words: list[str], names: str, line: CommandLine
) -> None:
    assert "--help" in line.refused(*words, names=names)


@pytest.mark.parametrize("words", [[], ["--help"], ["models"], ["methods"], ["explain", "--help"]], ids=" ".join)
def test_help_comes_where_nothing_is_asked(words: list[str], line: CommandLine) -> None:
    assert line.fine(*words).out.startswith("Usage: xai")


def test_help_names_every_command_and_option(line: CommandLine) -> None:
    told = line.fine("--help").out
    for command in ("explain", "analyze", "report", "models", "methods", "--version", "--install-completion"):
        assert command in told
    told = line.fine("explain", "--help").out
    for option in ("--model", "--method", "--weights", "--target", "--set", "--layer", "--out", "--save", "--device",
                   "--precision", "--seed", "--memory", "--open", "--quiet", "--json", "--dry-run"):  # fmt: skip
        assert option in told


def test_a_bug_of_ours_is_told_in_a_line_and_traceback_shows_where(
    line: CommandLine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr(catalog, "entries", broken)
    monkeypatch.setattr(sys, "argv", ["xai", "methods", "list"])
    assert cli.main() == 70
    err = capfd.readouterr().err
    assert err.startswith("xai: unexpected ZeroDivisionError: one two. This is a bug")
    assert len(err.splitlines()) == 1
    monkeypatch.setattr(sys, "argv", ["xai", "--traceback", "methods", "list"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


# --- as a process of its own ---
def test_explain_as_a_process(line: CommandLine) -> None:
    done = process("explain", "three.png", *CPU, folder=line.folder)
    assert (done.returncode, done.stderr) == (0, ""), "no progress bar on a pipe"
    own = line.fine("explain", "three.png", *CPU, "--out", "own")
    same_maps(line.folder / Path(done.stdout.strip()).parent, own.folder)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["explain", "--help"], ["methods", "list"], ["methods", "info", "gradcam"], ["models", "list"]],
    ids=" ".join,
)
def test_help_and_lists_import_no_torch(words: list[str], tmp_path: Path) -> None:
    heavy = "{'torch', 'torchvision', 'timm', 'captum', 'transformers', 'matplotlib', 'skimage'}"
    program = [sys.executable, "-c", CODE.format("pass", f"print('IMPORTED', sorted({heavy} & set(sys.modules)))")]
    done = process(*words, folder=tmp_path, program=program)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 3
    assert done.stdout.splitlines()[-1] == "IMPORTED []"


def test_a_reader_that_hangs_up_sees_no_traceback(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as gone:
        done = subprocess.run([*XAI, "models", "list"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                              stdout=gone, stderr=subprocess.PIPE, text=True, timeout=120, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("xai ", {"explain", "analyze", "benchmark", "report", "models", "methods", "filters", "fourier"}),
        ("xai explain --method gradcam", {"gradcam", "gradcam_plusplus"}),
        ("xai analyze smo", {"smoothgrad"}),
        ("xai explain --model xai:", {f"xai:{name}" for name in SHIPPED}),
        ("xai explain a.png --prec", {"--precision"}),
        ("xai models ", {"list", "info", "explore", "diagram"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_shell_completes(typed: str, offered: set[str], line: CommandLine, monkeypatch: pytest.MonkeyPatch,
                             capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    words = typed.split(" ")
    monkeypatch.setenv("_XAI_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed.strip())
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setattr(sys, "argv", ["xai"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    told = capfd.readouterr()
    assert set(told.out.split()) == offered
    assert told.err == ""


def test_completion_as_a_process_offers_methods_without_torch(tmp_path: Path) -> None:
    variables = {"_XAI_COMPLETE": "complete_bash", "COMP_WORDS": "xai explain --method gradcam", "COMP_CWORD": "3"}
    told = "import atexit; atexit.register(lambda: print('torch' in sys.modules))"
    done = process(folder=tmp_path, program=[sys.executable, "-c", CODE.format(told, "pass")], **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["gradcam", "gradcam_plusplus", "False"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_completion_is_shown(shell: str, tmp_path: Path) -> None:
    done = process(folder=tmp_path, _XAI_COMPLETE=f"source_{shell}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "_XAI_COMPLETE" in done.stdout


# --- progress ---
def terminal(*words: str, folder: Path, slow: float) -> tuple[int, str, str]:
    """Run with a pseudo-terminal as standard error: the exit code, what was printed, what came on the terminal."""
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    program = [sys.executable, "-c", CODE.format(f"cli.SLOW = {slow}", "pass")]
    with subprocess.Popen([*program, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=slave,
                          stdin=slave, text=True) as running:  # fmt: skip
        os.close(slave)
        seen = b""
        while True:
            try:
                piece = os.read(master, 4096)
            except OSError:  # how Linux says that the other side is closed
                break
            if not piece:
                break
            seen += piece
        os.close(master)
        assert running.stdout is not None
        return running.wait(120), running.stdout.read(), seen.decode()


def test_a_bar_with_the_time_left_appears_on_a_terminal(line: CommandLine) -> None:
    words = ["explain", "photos", "three.png", "--memory", "1", *CPU]
    code, out, seen = terminal(*words, folder=line.folder, slow=0)
    assert code == 0
    assert "index.html" in out
    assert "explaining" in seen
    assert "100%" in seen
    assert re.search(r"\d:\d\d:\d\d|-:--:--", seen), "the time left"
    no_traceback(seen)


def test_no_bar_before_a_second_and_none_when_quiet(line: CommandLine) -> None:
    assert terminal("explain", "three.png", *CPU, folder=line.folder, slow=1e9)[2] == ""
    assert terminal("explain", "three.png", "--quiet", *CPU, folder=line.folder, slow=0)[1:] == ("", "")


def test_no_bar_on_a_pipe_however_long_it_takes(line: CommandLine) -> None:
    program = [sys.executable, "-c", CODE.format("cli.SLOW = 0", "pass")]
    done = process("explain", "photos", "--memory", "1", *CPU, folder=line.folder, program=program)
    assert (done.returncode, done.stderr) == (0, "")


def test_progress_counts_the_work_of_all_models_to_the_end(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(cli.Progress, "__call__", lambda _, done, total: told.append((done, total)))
    model = ["--model", "xai:photo20", "--model", f"file:net.py:cnn?{NORMAL}"]
    line.fine("explain", "photos", *model, "--memory", "1", *CPU)
    assert {total for _, total in told} == {2 * 2 * (1 + 2 + 20)}, "two models, two pictures: forward, map, checks"
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (92, 92)


# --- Ctrl-C ---
SLEEPY = """
from pathlib import Path
from torch import nn

class Slow(nn.Sequential):
    def forward(self, x):
        Path("started").touch()
        return super().forward(x)

def slow():
    return Slow(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""


def test_ctrl_c_in_a_long_run_is_130_with_one_line_and_no_part_left(line: CommandLine) -> None:
    Path("slow.py").write_text(SLEEPY)
    words = ["explain", "three.png", "--model", f"file:slow.py:slow?{NORMAL}", "--method", "smoothgrad",
             "--set", "samples=1000000", *CPU]  # fmt: skip
    with subprocess.Popen([*XAI, *words], cwd=line.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:  # fmt: skip
        try:
            while not Path("started").exists() and running.poll() is None:
                time.sleep(0.02)
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, out) == (130, "")
    no_traceback(err)
    assert err.startswith("xai: interrupted; ")
    assert len(err.splitlines()) == 1
    assert not unfinished(line.folder)


@pytest.mark.parametrize(
    "moment",
    ["xai.ask.load_images", "xai.model.Model.prepare", "xai.result.write_arrays", "reports.export.heatmap_png",
     "reports.page.write"],
)  # fmt: skip
def test_ctrl_c_at_any_moment_is_130_and_spares_the_older_result(
    moment: str, line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.fine("explain", "three.png", "--out", "kept", *CPU)
    before = snapshot(line.folder)

    def pressed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, pressed)
    done = line("explain", "photos", "--out", "kept", *CPU)
    assert (done.code, done.out) == (130, "")
    assert done.err.startswith("xai: interrupted; ")
    assert len(done.err.splitlines()) == 1
    assert snapshot(line.folder) == before


def test_ctrl_c_between_the_two_moves_of_a_replacement_brings_the_older_result_back(
    line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.fine("explain", "three.png", "--out", "kept", *CPU)
    before, real, moves = snapshot(line.folder), os.replace, []

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == "kept" and Path(source).suffix == ".part":
            moves.append(source)
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    done = line("explain", "photos", "--out", "kept", *CPU)
    assert len(moves) == 1
    assert done.code == 130
    assert snapshot(line.folder) == before


def test_models_info_lists_the_layers_that_can_be_named(line: CommandLine) -> None:
    told = json.loads(line.fine("models", "info", "xai:photo20", "--json").out)
    layers = {layer["name"]: tuple(layer["grid"]) for layer in told["layers"]}
    assert layers[told["layer"]] == tuple(told["grid"]) == (8, 8)
    assert layers["stages.0"] == (32, 32)
    assert "fc" not in layers
    assert len(told["labels"]) == 20
    text = line.fine("models", "info", "xai:photo20").out
    for name in layers:
        assert re.search(rf"^(layers)? +{re.escape(name)} +\d+ x \d+ +\d+ channels$", text, re.MULTILINE)
    assert "... (all 20: --json)" in text
    for name in ("stages.0", "stages.1.0.relu2"):
        assert line.fine("explain", "three.png", "--layer", name, *CPU).folder.is_dir()
