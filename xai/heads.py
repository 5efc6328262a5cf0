"""What a network's output is (classes, labels, a number, a map, boxes, ...) and which tensor of it holds the answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xai import outputs
from xai.errors import XaiError

KINDS = ("classes", "multi-label", "regression", "map", "boxes", "embedding", "image")

# Keys under which libraries return the answer, most specific first; the kind that the key alone tells (None: by shape).
_KEYS: tuple[tuple[str, str | None], ...] = (
    ("pred_boxes", "boxes"),
    ("boxes", "boxes"),
    ("logits", None),
    ("out", None),
    ("output", None),
    ("prediction", None),
    ("predicted_depth", "image"),
    ("reconstruction", "image"),
    ("image_embeds", "embedding"),
    ("pooler_output", "embedding"),
    ("embedding", "embedding"),
    ("last_hidden_state", "embedding"),
)


@dataclass(frozen=True)
class Head:
    """How to read a network's output. `size`: classes, labels, channels or dimensions; `path`: where in the output;
    `probabilities`: it holds these, and their logarithm is read as scores (a softmax of it gives them again)."""

    kind: str
    size: int
    path: str = ""
    reason: str = ""
    probabilities: bool = False

    def read(self, output: Any) -> Tensor:
        """The tensor that holds the answer, as the network returns it: logits (n, classes), say; no softmax. One number
        a picture is (n, 1)."""
        value = output if isinstance(output, Tensor) and not self.path else outputs.pick(output, self.path)
        value = value[:, None] if value.ndim == 1 else value
        return value.clamp_min(torch.finfo(value.dtype).tiny).log() if self.probabilities else value


def resolve_head(output: Any, kind: str | None = None, path: str | None = None) -> Head:
    """The head that `output` (what the network returned for one batch) shows; `kind` and `path` override the answer.

    `path` is a place such as "[0]" or "['out']", or a plain key or index: "out", "0". Raises XaiError if the output
    holds no floating-point tensor, the place does not exist, or the kind is none of `KINDS`.
    """
    if kind is not None and kind not in KINDS:
        raise XaiError(f"The head must be one of {', '.join(KINDS)}; got {kind!r}. Use one of these.")
    found = [(place, tensor) for place, tensor in outputs.tensors(output) if tensor.is_floating_point()]
    if not found:
        raise XaiError(
            f"The output of the network must hold a floating-point tensor; got {type(output).__name__}. "
            "Wrap the network in a module that returns its scores."
        )
    place, told, why = _locate(found, path)
    tensor = dict(found)[place]
    if kind is not None:
        return _head(kind, tensor, place, f"{why}; read as {kind} because it was asked for")
    if told is not None:
        return _head(told, tensor, place, f"{why}, which names its kind")
    guess, shape = _by_shape(tensor)
    return _head(guess, tensor, place, f"{why}; {shape}")


def _head(kind: str, tensor: Tensor, place: str, why: str) -> Head:
    """The head of that kind; of classes it is seen whether they hold probabilities already."""
    shares = kind == "classes" and tensor.ndim == 2 and tensor.shape[1] > 1
    if shares and bool((tensor >= 0).all() and ((tensor.sum(1) - 1).abs() < 1e-3).all()):
        why += "; none is negative and they add up to 1: probabilities, whose logarithm is taken for scores"
        return Head(kind, _size(tensor), place, why, probabilities=True)
    return Head(kind, _size(tensor), place, why)


def _locate(found: list[tuple[str, Tensor]], path: str | None) -> tuple[str, str | None, str]:
    """(place, kind that its key tells, a few words why)."""
    places = [place for place, _ in found]
    if path is not None:
        for spelled in (path, f"[{path!r}]", f"[{path}]", f".{path}"):
            if spelled in places:
                return spelled, _told(spelled), f"{spelled or 'the output'} was asked for"
        known = ", ".join(place or "(the output itself)" for place in places)
        raise XaiError(f"The output must be one of {known}; got {path!r}. Name one of these.")
    if len(found) == 1:
        why = f"{places[0]} is the only tensor" if places[0] else "the output is one tensor"
        return places[0], _told(places[0]), why
    for key, told in _KEYS:
        for place in places:
            if _last_key(place) == key:
                return place, told, f"{place} of {len(found)} tensors"
    return places[0], None, f"{places[0]}, the first of {len(found)} tensors (the others are taken for auxiliary)"


def _last_key(place: str) -> str:
    words = re.findall(r"\w+", place)
    return words[-1] if words else ""


def _told(place: str) -> str | None:
    return dict(_KEYS).get(_last_key(place))


def _by_shape(tensor: Tensor) -> tuple[str, str]:
    size = _size(tensor)
    if tensor.ndim <= 1 or (tensor.ndim == 2 and size == 1):
        return "regression", "one number a picture"
    if tensor.ndim == 2:
        return "classes", f"one score for each of {size} classes (head=multi-label or head=embedding if it is that)"
    if tensor.ndim == 4 and size in (1, 3):
        return "image", f"{size} channel(s) with height and width (head=map if these are classes)"
    if tensor.ndim == 4:
        return "map", f"{size} scores at each position"
    return "embedding", f"shape {tuple(tensor.shape)} is neither class scores nor a map"


def _size(tensor: Tensor) -> int:
    if tensor.ndim <= 1:
        return 1
    return int(tensor.shape[1] if tensor.ndim == 4 or tensor.ndim == 2 else tensor.shape[-1])
