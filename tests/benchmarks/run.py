"""Prints each speed ratio beside its goal and exits 1 below one: `python tests/benchmarks/run.py` (or `make bench`).

Arms run in turns in one process, on the same weights, pictures and threads, after a warm-up; a figure is the median of
the ratios within a round. With one thread the clock is the process's own CPU time: a busy machine disturbs it little.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import torch  # noqa: E402  # after the path of the checkout
from interleave import Arm, Ratio, ratio, seconds  # noqa: E402
from processes import together, turns  # noqa: E402

PEERS = ("torch", "torchvision", "grad-cam", "captum", "torchcam", "lime", "shap", "scikit-image")


@dataclass(frozen=True)
class Goal:
    """A ratio of two arms that must stay at most, or at least, at a figure."""

    says: str
    above: str
    below: str
    most: float | None = None
    least: float | None = None

    def met(self, found: float) -> bool:
        """Whether the figure, as printed with two decimals, reaches the goal."""
        shown = round(found, 2)
        return (self.most is None or shown <= self.most) and (self.least is None or shown >= self.least)

    @property
    def text(self) -> str:
        """The goal in words."""
        return f"at most {self.most:g}" if self.most is not None else f"at least {self.least:g}"


CAMS = (
    Goal("Grad-CAM, in plain eager forwards", "gradcam", "forward", most=1.0),
    Goal("pytorch-grad-cam's Grad-CAM, in ours", "pytorch-grad-cam", "gradcam", least=3.0),
    Goal("captum's LayerGradCam, in ours", "captum", "gradcam", least=1.2),
    Goal("torch-cam's GradCAM, in ours", "torchcam", "gradcam", least=1.2),
    Goal("seven layer CAMs together, in one Grad-CAM", "seven", "gradcam", most=1.5),
)
SQUEEZENET = HERE.parents[2] / "shared/models/squeezenet1_0_imagenet.safetensors"
HALF_A_SECOND = 0.5
START = Goal("`xai --help`, in half a second of wall time", "help", "limit", most=1.0)
GRADIENTS = (Goal("captum's integrated gradients, in ours", "captum", "integrated_gradients", least=1.2),)

LINEAR = (Goal("a row of the linear interpreter, in plain eager forward + backward", "row", "forward and backward",
               most=1.3),)

MANY = ("rise", "lime", "occlusion", "shap_kernel", "scorecam")
FAST = tuple(Goal(f"{name}, a forward, in pure forwards of the fast form", name, "fast", most=1.05) for name in MANY)
EAGER = tuple(Goal(f"{name}, a forward, in plain eager forwards", name, "eager", most=0.85) for name in MANY)
WHOLE = (
    Goal("pytorch-grad-cam's AblationCAM, in ours", "pytorch-grad-cam AblationCAM", "ablationcam", least=50),
    Goal("pytorch-grad-cam's ScoreCAM, in ours", "pytorch-grad-cam ScoreCAM", "scorecam", least=1.1),
    Goal("captum's Occlusion, in ours", "captum Occlusion", "occlusion", least=1.1),
    Goal("RISE by the authors' algorithm, in ours", "rise of the authors", "rise", least=1.1),
    Goal("the lime package, in our LIME", "lime package", "lime", least=1.1),
    Goal("captum's Lime, in our LIME", "captum Lime", "lime", least=1.1),
    Goal("captum's KernelShap, in our shap_kernel", "captum KernelShap", "shap_kernel", least=1.1),
    Goal("shap's Partition with blur, in our shap_partition", "shap Partition", "shap_partition", least=1.0),
)
REACH = (Goal("as many full forwards of the fast form, in occlusion", "fast", "occlusion", least=3.0),)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    network: str
    goal: Goal
    found: Ratio

    @property
    def cells(self) -> tuple[str, ...]:
        """As they are printed."""
        spread = f"{self.found.low:.2f} to {self.found.high:.2f}"
        verdict = "yes" if self.goal.met(self.found.median) else "NO"
        return self.network, self.goal.says, f"{self.found.median:.2f}", spread, self.goal.text, verdict


HEAD = ("network", "ratio", "median", "rounds", "goal", "met")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and give the exit code."""
    asked = _parser().parse_args(arguments)
    torch.set_num_threads(asked.threads)
    clock = asked.clock or ("cpu" if asked.threads == 1 else "wall")
    rows = [_start_up(asked.rounds), *(row for net in asked.nets for row in _measured(net, asked, clock))]
    if asked.samples:
        rows += _black_box(asked)
    about = _about(asked, clock)
    print("\n" + _plain(rows) + "\n\n" + about)
    if asked.table:
        asked.table.parent.mkdir(parents=True, exist_ok=True)
        asked.table.write_text(_markdown(rows) + "\n\n" + about + "\n", encoding="utf-8")
    return 0 if all(row.goal.met(row.found.median) for row in rows) else 1


def _start_up(rounds: int) -> Row:
    """A fresh interpreter each time, against the limit."""
    command = [sys.executable, "-c", "from xai.cli import main; main()", "--help"]
    arm = Arm("help", lambda _: subprocess.run(command, cwd=HERE.parents[1], check=True, capture_output=True))
    found = seconds([arm], rounds, "wall", lambda _: None)["help"]
    return Row("-", START, ratio(found, [HALF_A_SECOND] * len(found)))


def _measured(net: str, asked: argparse.Namespace, clock: str) -> list[Row]:
    from arms import Case, cams, integrated_gradients, linear

    case = Case(net, asked.pictures, asked.size)
    rows = _rows(net, cams(case), CAMS, asked.rounds, clock)
    if net == asked.nets[0]:
        rows += _rows(net, integrated_gradients(case), GRADIENTS, asked.rounds, clock)
        rows += [row for one in (net, "squeezenet1_0")
                 for row in _rows(one, linear(one, asked.size), LINEAR, asked.rounds, clock)]
    return rows


def _black_box(asked: argparse.Namespace) -> list[Row]:
    """Methods of many forwards, one thread: in turns with pure forwards in one process, half of the samples a round;
    whole methods and peers each in its own process, on a quarter of the samples."""
    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    weights = str(asked.squeezenet) if asked.squeezenet.is_file() else None
    real = "squeezenet1_0" + (", ImageNet" if weights else "")
    rows = []
    for net, file, goals in (("squeezenet1_0", weights, FAST), ("resnet18", None, (*FAST, *EAGER))):
        for name in MANY:
            asked_of = [goal for goal in goals if goal.above == name]
            took = {arm: [t.each for t in all_] for arm, all_ in
                    together((name, *(goal.below for goal in asked_of)), net, asked.samples // 2, 2 * asked.turns - 1,
                             file, say).items()}
            rows += [Row(real if net == "squeezenet1_0" else net, goal, ratio(took[goal.above], took[goal.below]))
                     for goal in asked_of]
    for net, goals in (("resnet18", WHOLE), ("vgg16", REACH)):
        arms = tuple(dict.fromkeys(arm for goal in goals for arm in (goal.above, goal.below)))
        each = goals is REACH  # a pure forward is compared with a forward
        took = {arm: [t.each if each else t.seconds for t in all_] for arm, all_ in
                turns(arms, net, max(8, asked.samples // 4), asked.turns, None, say).items()}
        rows += [Row(net, goal, ratio(took[goal.above], took[goal.below])) for goal in goals]
    return rows


def _rows(net: str, arms: list[Arm], goals: tuple[Goal, ...], rounds: int, clock: str) -> list[Row]:
    started = time.perf_counter()

    def say(text: str) -> None:
        spent = time.perf_counter() - started
        print(f"{net}, {len(arms)} arms: {text}, {spent:.0f} s", file=sys.stderr, flush=True)

    found = seconds(arms, rounds, clock, say)
    return [Row(net, goal, ratio(found[goal.above], found[goal.below])) for goal in goals]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Each speed ratio beside its goal; exits 1 below one.")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count (default 9)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, for all arms (default 1)")
    parser.add_argument("--clock", choices=("cpu", "wall"), help="default: cpu with one thread, wall with more")
    parser.add_argument("--nets", nargs="+", default=["resnet18", "resnet50"], help="torchvision's resnets")
    parser.add_argument("--pictures", type=int, default=8, help="pictures in the batch (default 8)")
    parser.add_argument("--size", type=int, default=224, help="side of the input in pixels (default 224)")
    parser.add_argument("--samples", type=int, default=1000,
                        help="masks of the black-box methods (default 1000; 0 leaves these methods out)")
    parser.add_argument("--turns", type=int, default=3, help="rounds of the black-box methods (default 3)")
    parser.add_argument("--squeezenet", type=Path, default=SQUEEZENET,
                        help="weights of squeezenet1_0 (random where the file is missing)")
    parser.add_argument("--table", type=Path, help="also write the table here, in Markdown")
    return parser


def _plain(rows: list[Row]) -> str:
    lines = [HEAD, *(row.cells for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _markdown(rows: list[Row]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _about(asked: argparse.Namespace, clock: str) -> str:
    peers = ", ".join(f"{name} {version(name)}" for name in PEERS)
    timed = "process CPU time" if clock == "cpu" else "wall time"
    many = (f" Black-box methods: 1 picture of 224 x 224, 8 inputs a forward (squeezenet1_0: 7), 1 thread, process CPU "
            f"time. Beside pure forwards: {asked.samples // 2} samples, in turns in one process, median of "
            f"{2 * asked.turns - 1} rounds; beside peers: {asked.samples // 4} samples, each arm in its own process, "
            f"median of {asked.turns} rounds." if asked.samples else "")
    return (f"{asked.pictures} pictures of {asked.size} x {asked.size}, random weights, {asked.threads} thread(s), "
            f"{timed}, median of {asked.rounds} rounds in turns after a warm-up; {peers}; {platform.machine()}.{many}")


if __name__ == "__main__":
    sys.exit(main())
