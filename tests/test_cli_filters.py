"""xai filters as a user types it: collect, also killed and twice at once; query, also of damaged files; shift."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import filterdb
from filterdb import store
from xai.cli import main
from xai.cli_filters import weights_of
from xai.errors import XaiError
from xai.result import Result

ROOT = Path(__file__).resolve().parent.parent
NETS = '''"""Networks of many layers, each with its own weights."""
import torch
from torch import nn


def make(seed=0):
    torch.manual_seed(int(seed))
    layers = [layer for _ in range(12) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(3, 16, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
'''
# Every table takes a while, so that there is a moment to be killed in; `slow` is read by that process alone.
SLOW = """import sys, time
sys.argv[0] = 'xai'
from filterdb import store
real = store.row_of
store.row_of = lambda *a: (time.sleep(0.1), real(*a))[1]
from xai.cli import main
sys.exit(main())"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`xai filters WORDS` in this process and that folder."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["xai", "filters", *words]
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main()
    finally:
        sys.argv = before
    return subprocess.CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three networks and a database of two shipped ones, trained and random."""
    folder = tmp_path_factory.mktemp("desk")
    for seed in range(3):
        (folder / f"net{seed}.py").write_text(NETS.replace("seed=0", f"seed={seed}"))
    done = run(folder, "collect", "xai:tinyvgg", "xai:denoiser", "--db", "db")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("xai:tinyvgg: 330 filters of 4 layers -> ")
    assert run(folder, "collect", "xai:tinyvgg", "xai:denoiser", "--weights", "random", "--db", "db",
               "--quiet").stdout == ""
    return folder


def test_collecting_again_says_so_and_a_bad_spec_costs_only_itself(desk: Path) -> None:
    done = run(desk, "collect", "xai:tinyvgg", "no-such-model", "--db", "db")
    assert done.returncode == 1
    assert "already in" in done.stdout
    assert done.stderr.startswith("no-such-model: ")
    alone = run(desk, "collect", "no-such-model", "--db", "db")
    assert alone.returncode == 2
    assert "Traceback" not in alone.stderr
    nowhere = run(desk, "collect", "xai:tinyvgg", "--db", "net0.py")
    assert nowhere.returncode == 2
    assert "the database must be a folder that can be written" in nowhere.stderr


def test_a_query_prints_a_table_json_or_csv(desk: Path) -> None:
    sql = "SELECT spec, training, sum(n)::INT AS filters FROM layers WHERE k = 3 GROUP BY ALL ORDER BY ALL"
    plain, data, csv = (run(desk, "query", sql, "--db", "db", *more) for more in ((), ("--json",), ("--csv",)))
    assert [done.returncode for done in (plain, data, csv)] == [0, 0, 0]
    assert plain.stdout.splitlines()[0].split() == ["spec", "training", "filters"]
    rows = json.loads(data.stdout)
    assert rows[-1] == {"spec": "xai:tinyvgg", "training": "trained", "filters": 330}
    assert csv.stdout.splitlines()[-1] == "xai:tinyvgg,trained,330"
    summary = run(desk, "query", "--db", "db")
    assert summary.stdout.count("degenerate") == 4
    assert "Tiny ImageNet" in run(desk, "query", "SELECT DISTINCT dataset FROM layers", "--db", "db").stdout
    wrong = run(desk, "query", "SELECT colour FROM layers", "--db", "db")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "the query must be SQL" in wrong.stderr


def test_a_damaged_part_is_named_and_skipped_with_exit_1(desk: Path, tmp_path: Path) -> None:
    place = tmp_path / "db"
    assert run(desk, "collect", "file:net0.py:make", "file:net1.py:make", "--db", str(place)).returncode == 0
    part = sorted(place.glob("*/filters-k3-000.parquet"))[0]
    part.write_bytes(part.read_bytes()[:-100])
    whole = 3 * 16 + 12 * 256
    done = run(desk, "query", "SELECT count(*)::INT AS n FROM filters", "--db", str(place), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == [{"n": whole}]
    assert str(part) in done.stderr
    named = run(desk, "collect", "file:net2.py:make", "--db", str(place))
    assert named.returncode == 1
    assert str(part) in named.stderr
    mended = run(desk, "collect", "file:net0.py:make", "file:net1.py:make", "--db", str(place))
    assert mended.returncode == 0, mended.stderr
    again = run(desk, "query", "SELECT count(*)::INT AS n FROM filters", "--db", str(place), "--json", "--check")
    assert (again.returncode, json.loads(again.stdout)) == (0, [{"n": 3 * whole}])


def test_kill_9_costs_only_what_was_in_flight_and_the_next_run_completes(desk: Path, tmp_path: Path) -> None:
    place, specs = tmp_path / "db", [f"file:net{i}.py:make" for i in range(3)]
    first = subprocess.Popen([sys.executable, "-c", SLOW, "filters", "collect", *specs, "--db", str(place)], cwd=desk,
                             env=environment(), stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    first.stdout.readline()  # one is finished
    end = time.monotonic() + 60
    while not list(place.glob(".part-*")) and time.monotonic() < end:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    assert len(list(place.glob("model=*"))) == 1
    assert list(place.glob(".part-*")), "it was killed half-way through the second"
    (kept,) = filterdb.open(place, deep=True)._good[:1]
    stamp = kept.stat().st_mtime_ns
    done = run(desk, "collect", *specs, "--db", str(place))
    assert done.returncode == 0, done.stderr
    assert [("already" in line) for line in done.stdout.splitlines()] == [True, False, False]
    assert kept.stat().st_mtime_ns == stamp
    assert not list(place.glob(".part-*"))
    assert not list((place / ".writers").iterdir())
    database = filterdb.open(place, deep=True)
    assert (len(database.entries()), database.damaged) == (39, {})


def test_two_collectors_at_once_end_with_the_union(desk: Path, tmp_path: Path) -> None:
    place = tmp_path / "db"
    asked = [["file:net0.py:make", "file:net1.py:make"], ["file:net1.py:make", "file:net2.py:make"]]
    both = [subprocess.Popen([sys.executable, "-c", SLOW, "filters", "collect", *specs, "--db", str(place)], cwd=desk,
                             env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for specs in asked]
    told = [one.communicate(timeout=120) for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    database = filterdb.open(place, deep=True)
    assert {entry.facts.spec for entry in database.entries()} == {f"file:net{i}.py:make" for i in range(3)}
    assert len(list(place.glob("model=*"))) == 3
    assert not list(place.glob(".part-*"))


def test_a_second_writer_of_one_model_gives_way(tmp_path: Path) -> None:
    from tests.test_filterdb import plain

    def late() -> store.Pieces:
        filterdb.collect(plain(), tmp_path)  # another process is faster
        return []

    key = store.key_of(plain().weights_hash, plain().dtype, False)
    found = store.write(tmp_path, "test:plain0", key, late)
    assert (found.new, found.layers) == (False, 3)
    assert not list(tmp_path.glob(".part-*"))


def test_a_live_writer_is_left_alone(tmp_path: Path) -> None:
    with store._room(tmp_path) as part:
        store._sweep(tmp_path)  # a lock belongs to an open file: this stands for another process
        assert part.is_dir()
    (tmp_path / ".part-dead").mkdir()
    (tmp_path / ".writers" / "dead").touch()
    store._sweep(tmp_path)
    assert not (tmp_path / ".part-dead").exists()


def test_shift_writes_a_record_and_a_page(desk: Path) -> None:
    done = run(desk, "shift", "training = 'random'", "training = 'trained'", "--db", "db", "--out", "pair")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("pair/index.html")
    result = Result.load(desk / "pair")
    assert result.analyzer == "filters_shift"
    values = {panel.key: getattr(panel, "value", None) for panel in result.panels}
    assert values["drift"] > 0
    page = (desk / "pair" / "index.html").read_text(encoding="utf-8")
    assert all(words in page for words in ("Filter shift", "Phase space of", "What makes up the drift"))
    many = run(desk, "shift", "--by", "spec", "--db", "db", "--out", "many", "--basis", "fit", "--json")
    assert many.returncode == 0, many.stderr
    assert json.loads(many.stdout)["parameters"]["groups"] == ["xai:denoiser", "xai:tinyvgg"]


def test_shift_takes_specs_without_a_database(desk: Path) -> None:
    done = run(desk, "shift", "xai:tinyvgg", "xai:tinyvgg", "--weights", "own", "--weights", "random", "--out", "two")
    assert done.returncode == 0, done.stderr
    result = Result.load(desk / "two")
    assert result.parameters["groups"] == ["xai:tinyvgg (own)", "xai:tinyvgg (random)"]
    assert [model.random_weights for model in result.models] == [False, True]


@pytest.mark.parametrize(("words", "sentence"), [
    (["xai:tinyvgg", "--db", "db"], "the groups must be two or more"),
    (["--db", "db"], "what is compared must be"),
    (["--by", "training"], "what is compared must be"),
    (["--by", "colour", "--db", "db"], "--by must be one of"),
    (["a", "b", "--db", "db", "--basis", "wavelet"], "--basis must be dct or fit"),
    (["xai:tinyvgg", "k = 9", "--db", "db"], "a group must be"),
    (["xai:tinyvgg", "xai:denoiser", "--db", "db", "--size", "7"], "a group must be"),
    (["file:net.py:make?size=32", "colour = 1", "--db", "db"], "the query must be SQL"),
    (["a", "b", "--db", "nowhere"], "the database must be"),
])
def test_what_cannot_be_compared_gets_a_sentence(desk: Path, words: list[str], sentence: str) -> None:
    done = run(desk, "shift", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_weights_go_with_their_models() -> None:
    assert weights_of(["a", "b"], []) == [None, None]
    assert weights_of(["a", "b"], ["random"]) == ["random", "random"]
    assert weights_of(["a", "b"], ["own", "w.safetensors"]) == [None, "w.safetensors"]
    with pytest.raises(XaiError, match="--weights must be given once"):
        weights_of(["a", "b", "c"], ["x", "y"])
