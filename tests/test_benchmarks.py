"""The benchmarks run, name every ratio, and exit by whether the goals are met; no time is asserted here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

import black_box  # noqa: E402  # a script's folder is its own path
import cka  # noqa: E402
import dissection  # noqa: E402
import processes  # noqa: E402
import run as bench  # noqa: E402

QUICK = ["--rounds", "1", "--nets", "resnet18", "--pictures", "2", "--size", "64", "--samples", "0"]


def test_every_ratio_is_printed_beside_its_goal(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    done = subprocess.run([sys.executable, str(HERE / "benchmarks/run.py"), *QUICK, "--table", str(table)],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    text = table.read_text()
    for goal in (bench.START, *bench.CAMS, *bench.GRADIENTS, *bench.LINEAR):
        assert f"| {goal.says} |" in text
        assert goal.text in text
    assert done.returncode == int("| NO |" in text)


@pytest.mark.slow
def test_the_ratios_of_cka_are_printed_beside_their_goals(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    few = ["--pictures", "16", "--size", "32", "--rounds", "1", "--table", str(table)]
    done = subprocess.run([sys.executable, str(HERE / "benchmarks/cka.py"), *few], capture_output=True, text=True,
                          check=False)
    assert done.returncode in (0, 1), done.stderr
    text = table.read_text()
    for goal in (cka.TOTAL, cka.MEMORY, cka.FASTER):
        assert f"| {goal.says} |" in text
        assert goal.text in text
    assert done.returncode == int("| NO |" in text)


@pytest.mark.parametrize(("goal", "found", "met"), [
    (bench.Goal("x", "a", "b", most=1.0), 1.004, True), (bench.Goal("x", "a", "b", most=1.0), 1.01, False),
    (bench.Goal("x", "a", "b", least=3.0), 2.996, True), (bench.Goal("x", "a", "b", least=3.0), 2.98, False),
])
def test_a_goal_is_met_by_the_figure_as_printed(goal: bench.Goal, found: float, met: bool) -> None:
    assert goal.met(found) == met


ARMS = ("fast", "eager", "rise", "lime", "occlusion", "shap_kernel", "shap_partition", "rise of the authors",
        "lime package", "captum Lime", "captum KernelShap", "captum Occlusion", "shap Partition")


def test_an_arm_tells_its_seconds_and_forwards() -> None:
    took = processes.turns(["rise", "fast"], "squeezenet1_0", 16, 1, None, lambda _: None)
    assert [t.forwards for arm in took.values() for t in arm] == [16, 16]
    assert all(t.seconds > 0 and t.each == t.seconds / 16 for arm in took.values() for t in arm)


def test_arms_in_one_process_tell_every_round() -> None:
    took = processes.together(["rise", "fast"], "squeezenet1_0", 16, 2, None, lambda _: None)
    assert {arm: [t.forwards for t in all_] for arm, all_ in took.items()} == {"rise": [16, 16], "fast": [16, 16]}


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_runs(arm: str) -> None:
    took = processes.turns([arm], "squeezenet1_0", 140, 1, None, lambda _: None)[arm][0]
    assert took.seconds > 0
    assert took.forwards >= 100
    assert set(black_box.ARMS) >= {*ARMS, *(arm for goal in (*bench.FAST, *bench.EAGER, *bench.WHOLE, *bench.REACH)
                                            for arm in (goal.above, goal.below))}


def test_the_loops_of_a_dissection_count_alike_and_are_compared(tmp_path: Path,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.md"
    threads = torch.get_num_threads()
    try:
        code = dissection.main(["--quick", "--table", str(table)])  # exits where the three count differently
    finally:
        torch.set_num_threads(threads)
    text = table.read_text()
    assert text in capsys.readouterr().out
    assert code == int("| NO |" in text)
    for against, goal in dissection.GOALS:
        assert f"| {against}, in ours |" in text
        assert f"at least {goal:g}" in text


def test_units_together_are_timed_beside_one_by_one(tmp_path: Path) -> None:
    table, quick = tmp_path / "table.md", ["--units", "2", "--steps", "2", "--size", "64", "--rounds", "1"]
    done = subprocess.run([sys.executable, str(HERE / "benchmarks/activation_maximization.py"), *quick,
                           "--squeezenet", str(tmp_path / "none"), "--table", str(table)],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    assert "at least 1.5" in table.read_text()
    assert done.returncode == int("| NO |" in table.read_text())
