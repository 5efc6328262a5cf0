"""Runs arms of `black_box.py` in turns, each in a process of its own, and gives what each took in every round."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent / "black_box.py"


@dataclass(frozen=True)
class Took:
    """CPU seconds of an arm, and the forwards that they are for."""

    seconds: float
    forwards: int

    @property
    def each(self) -> float:
        """Seconds a forward."""
        return self.seconds / self.forwards


def turns(arms: Sequence[str], net: str, samples: int, rounds: int, weights: str | None,
          say: Callable[[str], None], script: Path = SCRIPT) -> dict[str, list[Took]]:
    """What every arm of a script took in every round; the order rotates by one a round."""
    found: dict[str, list[Took]] = {arm: [] for arm in arms}
    for turn in range(rounds):
        shift = turn % len(arms)
        for arm in (*arms[shift:], *arms[:shift]):
            given = ["--weights", weights] if weights else []
            command = [sys.executable, str(script), arm, net, str(samples), *given]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{arm} on {net} failed:\n{done.stderr}")
            found[arm].append(Took(**json.loads(done.stdout.splitlines()[-1])))
            say(f"{net}, round {turn + 1} of {rounds}: {arm}, {found[arm][-1].seconds:.1f} s")
    return found
