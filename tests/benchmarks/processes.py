"""Runs arms of `black_box.py` in turns, each in its own process or all in one; gives what each took in every round."""

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
    """What every arm of a script took in every round, each in its own process; the order rotates by one a round."""
    found: dict[str, list[Took]] = {arm: [] for arm in arms}
    for turn in range(rounds):
        shift = turn % len(arms)
        for arm in (*arms[shift:], *arms[:shift]):
            found[arm] += _process(script, arm, net, samples, weights)[arm]
            say(f"{net}, round {turn + 1} of {rounds}: {arm}, {found[arm][-1].seconds:.1f} s")
    return found


def together(arms: Sequence[str], net: str, samples: int, rounds: int, weights: str | None,
             say: Callable[[str], None], script: Path = SCRIPT) -> dict[str, list[Took]]:
    """What every arm took in every round, all in turns in one process: what is compared forward by forward must not
    differ by where a process's memory happens to lie (that alone moves a forward by 5 to 10 %)."""
    found = _process(script, ",".join(arms), net, samples, weights, rounds)
    say(f"{net}, {rounds} rounds: {', '.join(arms)}, {sum(t.seconds for all_ in found.values() for t in all_):.0f} s")
    return found


def _process(script: Path, arms: str, net: str, samples: int, weights: str | None,
             rounds: int = 1) -> dict[str, list[Took]]:
    command = [sys.executable, str(script), arms, net, str(samples), *(["--weights", weights] if weights else []),
               *(["--rounds", str(rounds)] if rounds > 1 else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arms} on {net} failed:\n{done.stderr}")
    told = json.loads(done.stdout.splitlines()[-1])
    return {arm: [Took(**each) for each in all_] for arm, all_ in told.items()}
