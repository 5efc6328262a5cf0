"""Arrays and tensors as pictures: which axis is what, which values are allowed, and the sentence where they are not."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from xai.errors import XaiError, error

Array = npt.NDArray[Any]
FEW = 4  # an axis of at most this length is taken for the channels of a numpy array
SLACK = 1e-6  # how far float pixels may lie outside [0, 1]: rounding in the caller's resize or blend


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor; never imports torch (who holds a tensor has imported it)."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_stack(value: Any, what: str, normalised: bool = False) -> Array:
    """A numpy array or torch tensor as pictures (n, C, h, w), checked, not copied and not yet converted.

    A tensor is (h, w), (C, h, w) or (n, C, h, w), any number of channels: torch's own order. A numpy array is (h, w),
    (h, w, C), (C, h, w) or (n, ...) of the last two with C at most 4: the channels are last, as PIL, OpenCV and
    scikit-image have them, or else first. Values: bool, uint8, uint16, or float in [0, 1] (any finite float with
    `normalised`). Raises XaiError for anything else; `what` names the array there.
    """
    array = _from_tensor(value) if is_tensor(value) else np.asarray(value)
    _check_dtype(array, what, normalised)
    stack = _tensor_layout(array, what) if is_tensor(value) else _array_layout(array, what)
    if stack.size == 0:
        raise error(what, "at least one picture of at least one pixel", f"shape {array.shape}", "Check how it was cut")
    if stack.dtype.kind == "f":
        _check_range(stack, what, normalised)
    return stack


def picture(stack: Array, i: int, normalised: bool = False) -> Array:
    """Picture i of a checked stack: its own contiguous (C, h, w) copy as uint8, uint16 or float32."""
    one = stack[i]
    if one.dtype.kind == "b":
        return np.where(one, np.uint8(255), np.uint8(0))
    if one.dtype.kind == "f":
        one = np.array(one, dtype=np.float32, order="C")
        return one if normalised else np.clip(one, 0.0, 1.0, out=one)
    return np.array(one, dtype=one.dtype.newbyteorder("="), order="C")


def _from_tensor(tensor: Any) -> Array:
    torch = sys.modules["torch"]
    plain = tensor.detach().cpu()
    if plain.is_quantized:
        plain = plain.dequantize()
    array: Array = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return array


def _check_dtype(array: Array, what: str, normalised: bool) -> None:
    if array.dtype.kind == "f":
        return
    if normalised:
        do = "Pass floats, or leave out normalised=True and let the model normalise"
        raise error(what, "float values when normalised=True", array.dtype, do)
    if array.dtype.kind != "b" and (array.dtype.kind != "u" or array.dtype.itemsize > 2):
        do = "Convert it with .astype(numpy.uint8) where its values are 0 to 255"
        raise error(what, "uint8, uint16, bool, or float in [0, 1]", array.dtype, do)


def _tensor_layout(array: Array, what: str) -> Array:
    if array.ndim == 2:
        return array[None, None]
    if array.ndim == 3:
        return array[None]
    if array.ndim == 4:
        return array
    do = "Index or reshape it to one of these"
    raise error(what, "a tensor of shape (h, w), (C, h, w) or (n, C, h, w)", f"shape {array.shape}", do)


def _array_layout(array: Array, what: str) -> Array:
    if array.ndim == 2:
        return array[None, None]
    if array.ndim not in (3, 4):
        do = "Index or reshape it to one of these"
        expected = "an array of shape (h, w), (h, w, C), (C, h, w), (n, h, w, C) or (n, C, h, w)"
        raise error(what, expected, f"shape {array.shape}", do)
    stack = array[None] if array.ndim == 3 else array
    first, last = 0 < stack.shape[1] <= FEW, 0 < stack.shape[3] <= FEW
    if first == last and stack.size:
        why = "both the first and the last axis could be the channels" if first else "neither axis is 1 to 4 long"
        do = "Pass torch.from_numpy(array) with the shape (C, h, w) or (n, C, h, w), which is never guessed"
        raise error(what, f"an array with 1 to {FEW} channels first or last", f"shape {array.shape}: {why}", do)
    return stack if first else np.moveaxis(stack, 3, 1)


def _check_range(stack: Array, what: str, normalised: bool) -> None:
    """Over the whole batch: a dark picture among pictures of 0 to 255 must not pass for one in [0, 1]."""
    low, high = float(stack.min()), float(stack.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _not_finite(stack, what)
    if normalised:
        if max(-low, high) > float(np.finfo(np.float32).max):
            raise error(what, "float32 values", f"{low:.3g} to {high:.3g}", "Rescale it")
    elif low < -SLACK or high > 1 + SLACK:
        raise _outside(low, high, what)


def _not_finite(stack: Array, what: str) -> XaiError:
    bad = ~np.isfinite(stack)
    n, c, y, x = (int(k) for k in np.argwhere(bad)[0])
    where = f"picture {n}, channel {c}, row {y}, column {x}"
    got = f"{int(bad.sum())} values that are NaN or infinite, the first at {where}"
    return error(what, "finite", got, "Replace them, for example with numpy.nan_to_num")


def _outside(low: float, high: float, what: str) -> XaiError:
    if low < -SLACK:
        do = "Rescale it, or pass normalised=True if it is already normalised as the model expects it"
    elif high <= 1.5:
        do = "Clip it to [0, 1] (interpolation may overshoot), or pass normalised=True if it is normalised"
    elif high <= 255:
        do = "Divide by 255, or pass uint8"
    elif high <= 65535:
        do = "Divide by 65535, or pass uint16"
    else:
        do = "Rescale it to [0, 1]"
    return error(what, "float values in [0, 1]", f"{low:.4g} to {high:.4g}", do)
