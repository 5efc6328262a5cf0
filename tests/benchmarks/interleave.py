"""Times several arms in turns, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


@dataclass(frozen=True)
class Arm:
    """`run` is timed on what `ready` gives, which is not: a fresh batch, say, because a batch keeps its forward."""

    name: str
    run: Callable[[Any], object]
    ready: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Ratio:
    """The ratio of two arms: the median over the rounds of the ratio within a round, and its least and largest."""

    median: float
    low: float
    high: float


def seconds(arms: Sequence[Arm], rounds: int, clock: str, say: Callable[[str], None],
            warm: bool = False) -> dict[str, list[float]]:
    """Seconds of every arm in every round; the order rotates by one a round. A first round warms up and does not count,
    unless all is `warm`.

    `say` is told of each round that is done; clock: cpu (this process) or wall.
    """
    now = CLOCKS[clock]
    found: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for turn in range(0 if warm else -1, rounds):
        shift = turn % len(arms)
        for arm in (*arms[shift:], *arms[:shift]):
            given = arm.ready()
            gc.collect()
            started = now()
            arm.run(given)
            spent = now() - started
            if turn >= 0:
                found[arm.name].append(spent)
        say(f"round {turn + 1} of {rounds}" if turn >= 0 else "warmed up")
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Of two arms' seconds, round by round."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))
