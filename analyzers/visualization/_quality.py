"""How good a picture is: does it hold under other augmentations, and does another network see the class too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from analyzers.visualization._ascent import METHOD, Network, enlarged
from analyzers.visualization._objectives import Unit
from analyzers.visualization._parameterisation import magnitudes
from analyzers.visualization._transforms import fresh
from xai import seeds
from xai.images import Images
from xai.model import Model
from xai.streaming import Left
from xai.targets import find_class

FRESH = 16  # draws of the other augmentations


@dataclass(frozen=True)
class Fresh:
    """Of n pictures under other augmentations: values (n,), the mean; where the unit is a class its mean probability
    and the share of draws in which it is the first, each (n,), NaN elsewhere."""

    values: Tensor
    probability: Tensor
    top: Tensor


def under_others(network: Network, pictures: Tensor, seed: int, draws: int = FRESH) -> Fresh:
    """Ask the network about pictures (n, C, H, W) under draws that they were not optimised under."""
    generator = seeds.generator(seed, "fresh", METHOD)
    values, chances, tops = [], [], []
    for _ in range(draws):
        value, output = network.look(fresh(generator, min(pictures.shape[-2:]))(pictures))
        values.append(value)
        chance, top = of_classes(network.model, network.units, output)
        chances.append(chance)
        tops.append(top)
    return Fresh(*(torch.stack(each).mean(0) for each in (values, chances, tops)))


def of_classes(model: Model, units: Sequence[Unit], output: Tensor) -> tuple[Tensor, Tensor]:
    """The probability (n,) of each unit that is a class, and 1 where it is the first, else 0; NaN for other units."""
    chance, top = torch.full((2, len(units)), float("nan"))
    if model.head.kind not in ("classes", "multi-label") or output.ndim != 2:
        return chance, top
    probability = output.sigmoid() if model.head.kind == "multi-label" else output.softmax(1)
    for row, unit in enumerate(units):
        if unit.class_index is not None:
            chance[row] = probability[row, unit.class_index]
            top[row] = float(output[row].argmax() == unit.class_index)
    return chance, top


def transferred(judge: Model, model: Model, units: Sequence[Unit], pictures: Tensor) -> Tensor:
    """(n,): the probability that another network gives to each picture's class, found by its name, or by its number
    where neither names any; NaN where it has no such class. One forward a picture."""
    black, white = (judge.preprocessing.constant(level) for level in (0.0, 1.0))
    inputs = black + enlarged(pictures, judge.preprocessing.size) * (white - black)
    output = torch.cat([judge.infer(part).float().cpu() for part in torch.split(inputs, 8)])
    found = torch.full((len(units),), float("nan"))
    if judge.head.kind not in ("classes", "multi-label") or output.ndim != 2:
        return found
    probability = output.sigmoid() if judge.head.kind == "multi-label" else output.softmax(1)
    for row, unit in enumerate(units):
        index = _same(judge, model, unit.class_index)
        if index is not None:
            found[row] = probability[row, index]
    return found


def _same(judge: Model, model: Model, index: int | None) -> int | None:
    if index is None or (judge.labels is None) != (model.labels is None):
        return None
    if judge.labels is None or model.labels is None:
        return index if judge.head.size == model.head.size else None
    return index if judge.labels == model.labels else find_class(model.labels[index], judge.labels, judge.head.size)


# --- natural pictures ---
def natural(model: Model, images: Images, size: tuple[int, int], left: Left) -> Iterator[Tensor]:
    """The pictures as the model sees them, in [0, 1], resized to the size that is optimised: (n, C, H, W) at a time.
    Bad ones are noted in `left`."""
    for batch in model.prepare(images, bad=left.add):
        yield enlarged(model.preprocessing.undo(batch.inputs.float().cpu()), size)


def mean_magnitudes(parts: Iterator[Tensor]) -> Tensor | None:
    """(C, H, W/2+1) float32 mean over all pictures; None where there are none."""
    total, count = torch.zeros(()), 0
    for part in parts:
        total, count = total + magnitudes(part).sum(0), count + len(part)
    return (total / count).float() if count else None
