"""The comparison of Shapley estimators runs, counts what each asks, and exits by whether ours has the least error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.test_shapley import brute_force, game

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

import shapley_error as bench  # noqa: E402  # a script's folder is its own path


def test_the_script_writes_its_table_and_exits_by_it(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    done = subprocess.run([sys.executable, str(HERE / "benchmarks/shapley_error.py"), "--smoke", "--table", str(table)],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    text = table.read_text()
    assert text == done.stdout
    assert all(name in text for name in bench.ESTIMATORS)
    for value in ("logit", "probability"):
        for budget in (24, 48):
            assert f"| {value} | {budget} |" in text
    assert done.returncode == int("| NO |" in text)


def test_the_stored_table_is_one_that_the_script_would_be_content_with() -> None:
    text = (HERE.parent / "examples/tables/shapley_error.md").read_text()
    assert "| NO |" not in text
    assert text.count("| yes |") == 8


def test_the_truth_is_the_definition() -> None:
    values = game(6, 1)
    assert_close(bench.shapley(6, values[:, 0]), brute_force(values)[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", bench.ESTIMATORS)
def test_every_estimator_asks_what_it_may_and_comes_near(name: str) -> None:
    before = (np.random.get_state(), torch.get_rng_state())
    made = bench.Game(8, game(8, 1, order=1)[:, 0] + 0.01 * game(8, 1)[:, 0])
    try:
        assert bench.one(bench.ESTIMATORS[name], made, 60, 0) < 0.05
        assert made.asked == 60
    finally:
        np.random.set_state(before[0])
        torch.set_rng_state(before[1])


def test_the_least_error_is_told_as_printed() -> None:
    def row(*means: float) -> bench.Row:
        errors = {name: np.full((2, 3), mean) for name, mean in zip(bench.ESTIMATORS, means, strict=True)}
        return bench.Row("logit", 64, errors)

    assert row(1e-3, 2e-3, 3e-3).least
    assert row(1e-3, 2e-3, 3e-3).cells[-2:] == ("2.00 (2.00 to 2.00)", "yes")
    assert not row(2e-3, 1e-3, 3e-3).least
    assert not row(1.001e-3, 1.0012e-3, 3e-3).least
    assert row(2e-3, 1e-3, 3e-3).cells[-1] == "NO"
