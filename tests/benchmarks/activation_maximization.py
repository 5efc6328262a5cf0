"""Prints how much faster sixteen units are optimised together than one by one; exits 1 below the goal of 1.5.

    python tests/benchmarks/activation_maximization.py --table examples/tables/activation_maximization_speed.md

Both arms take the same units, starts, transforms and steps (tests/test_activation_maximization.py), and run in turns.
"""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import torch  # noqa: E402  # after the path of the checkout
from interleave import Arm, ratio, seconds  # noqa: E402
from run import HEAD, SQUEEZENET, Goal, Row  # noqa: E402

from analyzers.visualization.activation_maximization import ActivationMaximization  # noqa: E402
from xai.subject import Subject  # noqa: E402
from xai.zoo.loading import load  # noqa: E402

GOAL = Goal("units one by one, in all of them together", "one by one", "together", least=1.5)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and give the exit code."""
    parser = argparse.ArgumentParser(description="Units together beside one by one; exits 1 below the goal.")
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: as many as torch takes")
    parser.add_argument("--squeezenet", type=Path, default=SQUEEZENET,
                        help="weights of squeezenet1_0 (random where the file is missing)")
    parser.add_argument("--table", type=Path, help="also write the table here, in Markdown")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    clock = "cpu" if asked.threads == 1 else "wall"
    real = asked.squeezenet.is_file()
    model = load("torchvision:squeezenet1_0", weights=str(asked.squeezenet) if real else "random")
    names = [f"features.12:{32 * i}" for i in range(asked.units)]

    def optimise(units: list[str], steps: int) -> None:
        ActivationMaximization(units=", ".join(units), steps=steps, size=asked.size)(Subject.of(model))

    def arms(steps: int) -> list[Arm]:
        return [Arm("together", lambda _: optimise(names, steps)),
                Arm("one by one", lambda _: [optimise([name], steps) for name in names])]

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    for arm in arms(2):  # warms up: a whole round of all steps would take as long as one that counts
        arm.run(None)
    found = seconds(arms(asked.steps), asked.rounds, clock, say, warm=True)
    row = Row("squeezenet1_0" + (", ImageNet" if real else ""), GOAL, ratio(found["one by one"], found["together"]))
    about = (f"{asked.units} channels of features.12, {asked.size} px, {asked.steps} steps, "
             f"{asked.threads} thread(s), {'process CPU' if clock == 'cpu' else 'wall'} time, median of {asked.rounds} "
             f"round(s) in turns; together {min(found['together']):.0f} s; torch {version('torch')}; "
             f"{platform.machine()}.")
    lines = [HEAD, ("---",) * len(HEAD), row.cells]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + about + "\n"
    print(text, end="")
    if asked.table:
        asked.table.parent.mkdir(parents=True, exist_ok=True)
        asked.table.write_text(text, encoding="utf-8")
    return 0 if GOAL.met(row.found.median) else 1


if __name__ == "__main__":
    sys.exit(main())
