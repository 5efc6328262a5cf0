"""Prints what CKA between all convolutions of two resnets costs beside the bare forwards and torch-cka; exits 1 below.

    python tests/benchmarks/cka.py --table examples/tables/cka.md

Needs torch-cka 0.21 (without it that goal counts as missed). Each arm runs in a process of its own, in turns:
`cka.py ARM PICTURES SIZE` is one arm. Extra memory is the process's peak less that of the bare forwards in their round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import torch  # noqa: E402  # after the path of the checkout
from interleave import Ratio, ratio  # noqa: E402
from run import HEAD, Goal, Row  # noqa: E402

from xai import catalog  # noqa: E402
from xai.images import load_images  # noqa: E402
from xai.model import Model  # noqa: E402
from xai.subject import Subject  # noqa: E402
from xai.torchvision_import import ensure_torchvision  # noqa: E402

NETS = ("resnet18", "resnet50")
BLOCK = 128  # pictures of a block, for all arms
PEER = "torch-cka"
TOTAL = Goal("cka, all in all, in bare forwards of both networks", "cka", "forwards", most=1.8)
FASTER = Goal("torch-cka, in cka", PEER, "cka", least=3.0)
MEMORY = Goal("memory of cka beyond the bare forwards', MB", "cka", "forwards", most=250)


class Case:
    """Two torchvision resnets with seeded random weights and seeded noise, for every arm the same."""

    def __init__(self, count: int, size: int) -> None:
        torch.manual_seed(0)
        self.size = size
        self.nets = [getattr(ensure_torchvision().models, name)().eval() for name in NETS]
        self.pictures = torch.rand(count, 3, size, size)
        self.convs = [[name for name, part in net.named_modules() if isinstance(part, torch.nn.Conv2d)]
                      for net in self.nets]

    def forwards(self) -> None:
        """Both networks over all pictures, and nothing else."""
        with torch.no_grad():
            for part in self.pictures.split(BLOCK):
                for net in self.nets:
                    net(part)

    def cka(self) -> None:
        """The analyzer from pictures to panels."""
        models = tuple(Model(net, mean=[0.0] * 3, std=[1.0] * 3, size=self.size) for net in self.nets)
        result = catalog.find("cka")(layers="conv", minibatch=BLOCK)(Subject(models, load_images(self.pictures)))
        assert result.panels[0].values.shape == tuple(1 + len(convs) for convs in self.convs)  # and the pixels

    def peer(self) -> None:
        """torch-cka on the same layers and blocks. At its end it asserts that no sum was rounded below 0, which does
        not always hold; the work is done by then."""
        from torch_cka import CKA

        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(self.pictures), batch_size=BLOCK)
        with contextlib.suppress(AssertionError):
            CKA(*self.nets, *NETS, *self.convs, device="cpu").compare(loader, loader)


ARMS: dict[str, Callable[[Case], None]] = {"forwards": Case.forwards, "cka": Case.cka, PEER: Case.peer}


def one_arm(name: str, count: int, size: int) -> None:
    """CPU seconds with one thread and the peak of memory, as JSON; eight pictures before that warm up."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    case = Case(count, size)
    whole, case.pictures = case.pictures, case.pictures[:8]
    ARMS[name](case)
    case.pictures = whole
    started = time.process_time()
    ARMS[name](case)
    took = time.process_time() - started
    print("\n" + json.dumps([took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6]))


def rounds(arms: list[str], asked: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """(seconds, MB) of every arm in every round; the order rotates by one a round."""
    found: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    for turn in range(asked.rounds):
        shift = turn % len(arms)
        for arm in (*arms[shift:], *arms[:shift]):
            command = [sys.executable, str(Path(__file__).resolve()), arm, str(asked.pictures), str(asked.size)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{arm} failed:\n{done.stderr}")
            seconds, memory = json.loads(done.stdout.splitlines()[-1])
            found[arm].append((seconds, memory))
            print(f"round {turn + 1} of {asked.rounds}: {arm}, {seconds:.1f} s, {memory:.0f} MB", file=sys.stderr)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and give the exit code."""
    parser = argparse.ArgumentParser(description="CKA beside bare forwards and torch-cka; exits 1 below a goal.")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--size", type=int, default=64, help="side of the input in pixels (default 64)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--table", type=Path, help="also write the table here, in Markdown")
    asked = parser.parse_args(arguments)
    there = find_spec("torch_cka") is not None
    took = rounds(["forwards", "cka", *([PEER] if there else [])], asked)
    seconds = {arm: [one[0] for one in each] for arm, each in took.items()}
    extra = sorted(ours[1] - bare[1] for ours, bare in zip(took["cka"], took["forwards"], strict=True))
    network = " x ".join(NETS)
    rows = [Row(network, TOTAL, ratio(seconds["cka"], seconds["forwards"])),
            Row(network, MEMORY, Ratio(extra[len(extra) // 2], extra[0], extra[-1])),
            Row(network, FASTER, ratio(seconds[PEER], seconds["cka"]) if there else Ratio(*[float("nan")] * 3))]
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells for row in rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + about(asked) + "\n"
    print(text, end="")
    if asked.table:
        asked.table.parent.mkdir(parents=True, exist_ok=True)
        asked.table.write_text(text, encoding="utf-8")
    return 0 if all(row.goal.met(row.found.median) for row in rows) else 1


def about(asked: argparse.Namespace) -> str:
    """How it was measured."""
    try:
        peer = f"torch-cka {version(PEER)}"
    except PackageNotFoundError:
        peer = "torch-cka is not installed"
    return (f"All convolutions of both networks (random weights), {asked.pictures} pictures of {asked.size} x "
            f"{asked.size} in blocks of {BLOCK}, 1 thread, process CPU time, each arm in its own process, median of "
            f"{asked.rounds} rounds; {peer}, torch {version('torch')}; {platform.machine()}.")


if __name__ == "__main__":
    given = sys.argv[1:]
    if given and given[0] in ARMS:
        one_arm(given[0], int(given[1]), int(given[2]))
    else:
        sys.exit(main(given))
