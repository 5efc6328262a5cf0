"""Put a state dict into a network: wrappers' prefixes off, every name and shape checked, every difference told."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xai.errors import error
from xai.zoo.state_dicts import State

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "model_ema.", "ema_model.", "online_network.")
_COUNTER = "num_batches_tracked"  # of batch norms, used in training only; files from before torch 0.4.1 lack it
_SHOWN = 3


def fit(
    module: nn.Module, state: State, *, what: str, optional: Sequence[str] = (), classes_option: bool = False
) -> list[str]:
    """Load `state` into `module` (cast to its dtype) and return what is worth telling.

    what: the model's name for messages. optional: prefixes of parts that may be absent on either side. classes_option:
    whether ?classes= on the spec can answer a wrong number of classes. Raises XaiError where a name or shape differs.
    """
    notes = list(state.notes)
    own = module.state_dict()
    tensors, stripped = _without_prefixes(state.tensors, own)
    if stripped:
        notes.append("taken off the names in the weights file: " + ", ".join(stripped))
        tensors = _only_stripped(state.tensors, tensors, own, notes)
    _check_shapes(own, tensors, what, classes_option)
    counters = {name: value for name, value in own.items() if name.endswith(_COUNTER)}
    loaded = _loadable({**counters, **tensors}, state.metadata if not stripped else None, module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            missing, unexpected = module.load_state_dict(loaded, strict=False)
    except (RuntimeError, ValueError) as problem:
        first = str(problem).strip().splitlines()[-1].strip()[:200]
        raise error("the weights", f"those of {what}", first, "Check which architecture they belong to") from problem
    notes += _check_names(what, [_split(names, optional) for names in (missing, unexpected)], len(own) - len(counters))
    _check_finite(module, what)
    return notes


def _without_prefixes(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the names that share most with the network's own, and which prefixes had to go."""
    stripped: list[str] = []
    best = len(own.keys() & tensors.keys())
    for _ in range(4):  # wrappers nest: DistributedDataParallel around a compiled module around a trainer's `model`
        trials = [
            (prefix, _strip(tensors, prefix)) for prefix in PREFIXES if any(_has(name, prefix) for name in tensors)
        ]
        scored = [(len(own.keys() & trial.keys()), prefix, trial) for prefix, trial in trials]
        if not scored:
            break
        score, prefix, trial = max(scored, key=lambda found: found[0])
        whole = all(name.startswith(prefix) for name in tensors)
        if score < best or (score == best and not (whole and score == 0)):
            break
        best, tensors = score, trial
        stripped.append(prefix)
    return (tensors, stripped) if best else (tensors, [])


def _has(name: str, prefix: str) -> bool:
    return name.startswith(prefix) or (prefix in PREFIXES[:2] and f".{prefix}" in name)


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Prefixes go from the front; DataParallel's and the compiler's also from inside (VGG's `features.module.0`)."""
    if prefix in PREFIXES[:2]:
        return {re.sub(rf"(^|\.){re.escape(prefix)}", r"\1", name): value for name, value in tensors.items()}
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def _only_stripped(
    before: dict[str, Tensor], after: dict[str, Tensor], own: dict[str, Tensor], notes: list[str]
) -> dict[str, Tensor]:
    """Without what lay beside the network in the file (a loss, a teacher), provided the network itself is complete."""
    beside = [name for name in after if name in before and name not in own]
    if not beside or any(name not in after for name in own if not name.endswith(_COUNTER)):
        return after
    notes.append(f"{len(beside)} tensors beside the network were left out, {beside[0]} first")
    return {name: value for name, value in after.items() if name not in beside}


def _check_shapes(own: dict[str, Tensor], tensors: dict[str, Tensor], what: str, classes_option: bool) -> None:
    wrong = [name for name, value in own.items() if name in tensors and tensors[name].shape != value.shape]
    if not wrong:
        return
    pairs = {(tensors[name].shape[0], own[name].shape[0]) for name in wrong if tensors[name].ndim and own[name].ndim}
    rows_only = all(tensors[name].shape[1:] == own[name].shape[1:] for name in wrong)
    shapes = "; ".join(f"{name} is {_shape(tensors[name])}, not {_shape(own[name])}" for name in wrong[:_SHOWN])
    if rows_only and len(pairs) == 1 and wrong[-1] in list(own)[-4:]:
        got, expected = pairs.pop()
        do = f"Add ?classes={got} to the spec" if classes_option else f"Build the network with {got} outputs"
        raise error(
            "the weights", f"those of {what} with {expected} classes", f"weights with {got} classes ({shapes})", do
        )
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    raise error(
        "the weights",
        f"those of {what}",
        f"tensors of other shapes: {shapes}{more}",
        "Check which architecture they belong to",
    )


def _loadable(
    tensors: dict[str, Tensor], metadata: dict[str, object] | None, module: nn.Module
) -> OrderedDict[str, Tensor]:
    """With the file's versions by module; without any, the root's own is set, which MNASNet asks for, and no other, so
    that parts translate the names of their older versions."""
    loaded = OrderedDict(tensors)
    if metadata is None:
        metadata = {"": getattr(module.state_dict(), "_metadata", {}).get("", {})}
    loaded._metadata = metadata  # type: ignore[attr-defined]  # where torch itself keeps them
    return loaded


def _split(names: Sequence[str], optional: Sequence[str]) -> tuple[list[str], list[str]]:
    beside = [name for name in names if optional and name.startswith(tuple(optional))]
    return [name for name in names if name not in beside], beside


def _check_names(what: str, found: list[tuple[list[str], list[str]]], total: int) -> list[str]:
    (missing, absent), (unexpected, spare) = found
    if missing or unexpected:
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        do = "Check which architecture they belong to"
        if len(missing) == total:
            do = "None of the names fits; check which architecture they belong to"
        raise error("the weights", f"those of {what}", f"names that differ: {'; '.join(parts)}", do)
    notes = []
    if absent:
        notes.append(f"the weights hold no {absent[0].split('.')[0]} (used in training only)")
    if spare:
        notes.append(f"{len(spare)} tensors for training only were left out, {spare[0]} first")
    return notes


def _check_finite(module: nn.Module, what: str) -> None:
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise error(
                "the weights", f"finite numbers for {what}", f"NaN or infinity in {name}", "Take an earlier checkpoint"
            )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
