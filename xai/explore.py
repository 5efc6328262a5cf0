"""What the model explorer shows, as plain data: the stages of a network with this picture's maps, weights and numbers.

`describe` gives a nest of dicts, lists, texts and numpy arrays that `reports.explorer` draws; no torch in it. Networks
whose steps are all known ones and whose numbers are few are described step by step (`detail` "full": every map, kernel
and weight, xai/explore_steps.py), all others stage by stage (`detail` "stages": the strongest channels of every block,
xai/explore_blocks.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xai.batch import Batch
from xai.errors import error
from xai.explore_blocks import CELLS, UNITS, blocks
from xai.explore_steps import FULL_FLOATS, Unknown, floats, steps
from xai.images import Image
from xai.model import Model
from xai.targets import parse_targets

Stage = dict[str, Any]
MOST_FLOATS = 1_300_000
"""Numbers of a network shown by stages: 5.2 MB of float32, 7 MB in a page of at most 8 MB."""
ANSWERS = 10
"""Classes of a long answer that are shown one by one."""


def describe(model: Model, image: Image, target: str = "top1") -> dict[str, Any]:
    """Everything the explorer's page holds, for one picture and the class that `target` names.

    Keys: `model` (spec, parameters, weights, random, notes), `image` (name, width, height), `seen` (the network's input
    as a picture (H, W, 3) uint8), `detail` ("full" or "stages"), `left_out` (sentences), `labels` (class number -> name
    of those shown), `target` (class number or None), `stages` in the order of execution. A stage holds `name`, `op`,
    `kind`, `shape`, `parameters`, `sources` (positions of the stages it reads), `units` (channel numbers), `rule` (how
    they were chosen), `values` (units, h, w) float32, `step` (every how many rows and columns of the map are in it),
    `low`, `high` (of the whole map), `field` (what cell (y, x) sees of the input: `start`, `jump`, `size` an axis) and
    what its operation needs. Raises XaiError where the network cannot be looked into or the target is none of it.
    """
    model.need("hooks")
    batch = next(model.prepare([image]))
    logits = batch.output()
    chosen = _target(batch, logits, target)
    entry = _entry(model, batch)
    full, why = _full(model, batch)
    stages = [entry, *(full if full is not None else _thinned(blocks(model, batch, _shown(logits, chosen))))]
    closing = _closing(model, logits, chosen, stages)
    stages += [closing] if closing else []
    classes = logits.ndim == 2 and model.head.kind in ("classes", "multi-label")
    named = sorted({u for s in stages if s["kind"] in ("linear", "softmax", "answer") for u in s["units"]})
    found = model.record()
    return {
        "model": {"spec": model.spec, "parameters": found.parameters, "weights": found.weights, "head": found.head,
                  "random": model.random_weights, "notes": list(found.notes),
                  "preprocessing": model.preprocessing.describe()},
        "image": {"name": image.name, "height": int(image.pixels.shape[-2]), "width": int(image.pixels.shape[-1])},
        "seen": batch.seen[0],
        "detail": "full" if full is not None else "stages",
        "left_out": [] if full is not None else [why, *_sampled(stages)],
        "labels": {str(i): model.class_name(i) for i in named} if classes else {},
        "target": chosen if classes else None,
        "stages": stages,
    }


def _target(batch: Batch, logits: Tensor, target: str) -> int | None:
    """The class that the walk ends at; None for an output that has no classes."""
    targets = parse_targets(target)
    if len(targets) > 1:
        raise error("the target of the explorer", "one class", repr(target), "Name one, such as top1 or class:3")
    if logits.ndim != 2 or batch.model.head.kind not in ("classes", "multi-label"):
        return None
    bound = targets[0].bind(logits, kind=batch.model.head.kind, labels=batch.model.labels, truth=batch.truth,
                            embed=batch.model.embed)
    if bound.classes is None or bound.versus is not None:
        raise error("the target of the explorer", "one class", repr(target), "Name one, such as top1 or class:3")
    return int(bound.classes[0])


def _shown(logits: Tensor, chosen: int | None) -> list[int]:
    """The classes shown one by one: all of a short answer, else the likeliest and the chosen one, best first."""
    if logits.ndim != 2:
        return []
    count = logits.shape[1]
    if count <= 2 * ANSWERS:
        return list(range(count))
    best: list[int] = logits[0].topk(ANSWERS).indices.tolist()
    return best if chosen is None or chosen in best else [*best[:-1], chosen]


def _entry(model: Model, batch: Batch) -> Stage:
    """The picture as the network takes it."""
    x, preparing = batch.inputs[0].detach().float().cpu(), model.preprocessing
    names = ["red", "green", "blue"] if len(x) == 3 else [f"channel {i}" for i in range(len(x))]
    known = preparing.mean is not None and preparing.std is not None and not batch.images[0].normalised
    normalised = {"mean": list(preparing.mean or ()), "std": list(preparing.std or ()),
                  "range": list(preparing.range)} if known else None
    step = max(1, -(-max(x.shape[1:]) // CELLS))
    return {"name": "input", "op": "input", "kind": "input", "shape": list(x.shape), "parameters": 0, "sources": [],
            "units": list(range(min(len(x), 12))), "unit_names": names[:12], "rule": "all" if len(x) <= 12 else "first",
            "values": x[:12, ::step, ::step].numpy(), "step": step, "low": float(x.min()), "high": float(x.max()),
            "field": {"start": [0.0, 0.0], "jump": [1.0, 1.0], "size": [1, 1]}, "normalised": normalised}


def _full(model: Model, batch: Batch) -> tuple[list[Stage] | None, str]:
    """Step by step, or None and the sentence why not."""
    try:
        found = steps(model, batch)
    except Unknown as problem:
        return None, f"Kernels and the numbers inside blocks are left out: {problem}."
    count = floats(found) + batch.inputs[0].numel()
    if count > FULL_FLOATS:
        return None, (f"Kernels and the numbers inside blocks are left out: {count:,} maps' values and weights, more "
                      f"than the {FULL_FLOATS:,} that are shown whole.")
    return found, ""


def _thinned(stages: list[Stage]) -> list[Stage]:
    """The stages with fewer rows and columns of their largest maps, where they would make the page too heavy."""
    while floats(stages) > MOST_FLOATS:
        largest = max(max(stage["values"].shape[1:]) for stage in stages)
        if largest < 2:
            break
        for stage in stages:
            if max(stage["values"].shape[1:]) == largest:
                stage.update(values=stage["values"][:, ::2, ::2], step=2 * stage["step"])
    return stages


def _sampled(stages: list[Stage]) -> list[str]:
    said = []
    if any(stage["rule"] == "strongest" for stage in stages):
        said.append(f"Of a stage with more than {UNITS} channels the {UNITS} are shown whose mean absolute value on "
                    "this picture is the largest.")
    skipped = sorted({stage["step"] for stage in stages if stage["step"] > 1})
    if skipped:
        said.append(f"Of large maps every {' or '.join(map(_ordinal, skipped))} row and column is shown; the numbers "
                    "are the network's own.")
    return said


def _ordinal(n: int) -> str:
    return f"{n}{ {2: 'nd', 3: 'rd'}.get(n, 'th') }"


def _closing(model: Model, logits: Tensor, chosen: int | None, stages: list[Stage]) -> Stage | None:
    """The last step, from scores to probabilities; None where the output is no list of scores."""
    kind = model.head.kind
    if logits.ndim != 2 or kind not in ("classes", "multi-label"):
        return None
    z = logits[0].detach().double().cpu()
    p = torch.softmax(z, 0) if kind == "classes" else torch.sigmoid(z)
    units = _shown(logits.cpu(), chosen)
    return {"name": "softmax" if kind == "classes" else "sigmoid", "op": "softmax" if kind == "classes" else "sigmoid",
            "kind": "softmax" if kind == "classes" else "answer", "shape": [len(z)], "parameters": 0,
            "sources": [len(stages) - 1], "units": units, "rule": "all" if len(units) == len(z) else "likeliest",
            "values": p[units].float().numpy().reshape(-1, 1, 1), "logits": z.float().numpy(), "step": 1,
            "low": float(p.min()), "high": float(p.max()), "field": None}
