"""Prints how much longer Quantus' pixel flipping takes a curve than a deletion here; exits 1 below the goal.

    python tests/benchmarks/removal.py --table examples/tables/removal.md

Needs quantus 0.6. Each arm runs in a process of its own, in turns: `removal.py ARM NET STEPS` is one arm. An arm takes
what a curve takes from the map on: the order of its pixels, the forward of the picture itself, the steps.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np  # noqa: E402  # after the path of the checkout
import processes  # noqa: E402
import torch  # noqa: E402
from black_box import Case, Run, eager  # noqa: E402
from interleave import ratio  # noqa: E402
from run import HEAD, SQUEEZENET, Goal, Row  # noqa: E402

from xai.removal import Course, in_steps, order, walked  # noqa: E402
from xai.sampler import Sampler  # noqa: E402
from xai.targets import Target  # noqa: E402

NETS = ("squeezenet1_0", "resnet18")
PEER = "quantus PixelFlipping"
GOALS = (Goal(f"{PEER}, at the same steps, in our deletion", PEER, "deletion", least=5.0),
         Goal(f"{PEER}, at as many channel values a step, in our deletion", f"{PEER} by values", "deletion", least=5.0),
         Goal("our deletion, in as many forwards of the fast form", "deletion", "fast", most=1.1),
         Goal("our deletion, in as many plain eager forwards", "deletion", "eager", most=1.0))


def step_of(case: Case) -> int:
    """Pixels a step."""
    return -(-case.x[0, 0].numel() // case.samples)


def the_map(case: Case) -> torch.Tensor:
    """(H, W): smooth noise, the same for every arm."""
    coarse = torch.rand(1, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, case.x.shape[-2:], mode="bilinear")[0, 0]


def deletion(case: Case) -> Run:
    """One curve of a fresh batch."""
    values = the_map(case)

    def run() -> int:
        batch = case.batch()
        before = case.model.cost.forwards
        sampler = Sampler(batch, 0, [batch.bind(Target("top1"))], "probability")
        first = order(values, sampler.generator("deletion"))
        counts = in_steps(len(first), step_of(case))
        walked(sampler, [Course(first, sampler.x, torch.zeros_like(sampler.x), counts)])
        return case.model.cost.forwards - before

    return run


def flipping(channels: int) -> Callable[[Case], Run]:
    """Quantus' metric with features_in_step so many times our pixels a step: its features are values of channels."""
    def arm(case: Case) -> Run:
        import quantus

        class AnyStep(quantus.PixelFlipping):  # type: ignore[misc]  # no types
            def custom_preprocess(self, x_batch: np.ndarray, **_: Any) -> None:
                """Without its check that the step divides the pixels, which bars three values a pixel."""

        if not hasattr(np, "trapz"):
            np.trapz = np.trapezoid  # type: ignore[attr-defined]  # it was taken out of numpy
        features = channels * step_of(case)
        metric = AnyStep(features_in_step=features, perturb_baseline=0.0, normalise=False, return_auc_per_sample=True,
                         disable_warnings=True, display_progressbar=False)
        inputs, a, y = case.x.numpy(), the_map(case)[None, None].numpy(), np.array([case.target])

        def run() -> int:
            with torch.no_grad():
                metric(model=case.net, x_batch=inputs, y_batch=y, a_batch=a, softmax=True, device="cpu")
            return -(-inputs.size // features)

        return run

    return arm


ARMS: dict[str, Callable[[Case], Run]] = {
    "deletion": deletion,
    "fast": lambda c: c.forwards(c.model.infer, c.samples + 1),
    "eager": lambda c: c.forwards(eager(c), c.samples + 1),
    PEER: flipping(3),
    f"{PEER} by values": flipping(1),
}


def one_arm(arguments: list[str]) -> None:
    """Time one arm with one thread, after a short run that does not count."""
    parser = argparse.ArgumentParser(description="CPU seconds and forwards of one arm, as JSON.")
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("net", choices=NETS)
    parser.add_argument("samples", type=int)
    parser.add_argument("--weights")
    asked = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    case = Case(asked.net, min(16, asked.samples), asked.weights)
    ARMS[asked.arm](case)()
    case.samples = asked.samples
    run = ARMS[asked.arm](case)
    started = time.process_time()
    count = run()
    print(json.dumps({asked.arm: [{"seconds": time.process_time() - started, "forwards": count}]}))


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and give the exit code."""
    parser = argparse.ArgumentParser(description="A deletion curve beside Quantus'; exits 1 below the goal.")
    parser.add_argument("--steps", type=int, default=224, help="steps of the curve (default 224: 224 pixels each)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument("--squeezenet", type=Path, default=SQUEEZENET,
                        help="weights of squeezenet1_0 (random where the file is missing)")
    parser.add_argument("--table", type=Path, help="also write the table here, in Markdown")
    asked = parser.parse_args(arguments)
    rows = []
    for net in asked.nets:
        weights = str(asked.squeezenet) if net == "squeezenet1_0" and asked.squeezenet.is_file() else None
        took = processes.turns(list(ARMS), net, asked.steps, asked.rounds, weights,
                               lambda said: print(said, file=sys.stderr, flush=True), Path(__file__).resolve())
        seconds = {arm: [one.seconds for one in each] for arm, each in took.items()}
        rows += [Row(net, goal, ratio(seconds[goal.above], seconds[goal.below])) for goal in GOALS]
        print(net, {arm: each[0].forwards for arm, each in took.items()}, "forwards", file=sys.stderr)
    about = (f"{asked.steps} steps, 1 picture of 224 x 224, 1 thread, process CPU time of a whole curve, each arm in "
             f"its own process, median of {asked.rounds} rounds; quantus {version('quantus')}, torch "
             f"{version('torch')}; "
             f"{platform.machine()}. Quantus' step is counted in channel values, three a pixel: with as many values as "
             "our step has pixels it runs three times the forwards.")
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells for row in rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + about + "\n"
    print(text, end="")
    if asked.table:
        asked.table.parent.mkdir(parents=True, exist_ok=True)
        asked.table.write_text(text, encoding="utf-8")
    return 0 if all(row.goal.met(row.found.median) for row in rows) else 1


if __name__ == "__main__":
    given = sys.argv[1:]
    if given and given[0] in ARMS:
        one_arm(given)
    else:
        sys.exit(main(given))
