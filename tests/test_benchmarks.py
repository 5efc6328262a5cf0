"""The benchmarks run, name every ratio, and exit by whether the goals are met; no time is asserted here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

import run as bench  # noqa: E402  # a script's folder is its own path

QUICK = ["--rounds", "1", "--nets", "resnet18", "--pictures", "2", "--size", "64"]


def test_every_ratio_is_printed_beside_its_goal(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    done = subprocess.run([sys.executable, str(HERE / "benchmarks/run.py"), *QUICK, "--table", str(table)],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    text = table.read_text()
    for goal in (bench.START, *bench.CAMS, *bench.GRADIENTS):
        assert f"| {goal.says} |" in text
        assert goal.text in text
    assert done.returncode == int("| NO |" in text)


@pytest.mark.parametrize(("goal", "found", "met"), [
    (bench.Goal("x", "a", "b", most=1.0), 1.004, True), (bench.Goal("x", "a", "b", most=1.0), 1.01, False),
    (bench.Goal("x", "a", "b", least=3.0), 2.996, True), (bench.Goal("x", "a", "b", least=3.0), 2.98, False),
])
def test_a_goal_is_met_by_the_figure_as_printed(goal: bench.Goal, found: float, met: bool) -> None:
    assert goal.met(found) == met
