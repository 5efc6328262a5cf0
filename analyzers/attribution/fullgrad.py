"""FullGrad: the score split into what the input and what every bias of the network contributed, put on one map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.errors import error
from xai.layers import inside_backward
from xai.model import Model
from xai.panels import Number, View
from xai.spread import spread
from xai.targets import Bound

CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
PRODUCTS = {torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__imul__}
# Applied to each value alone and not positively homogeneous; ReLU, leaky ReLU and PReLU are, and have no implicit bias.
ACTIVATIONS = {
    F.gelu, F.silu, F.mish, F.elu, F.selu, F.celu, F.softplus, F.softsign, F.logsigmoid, F.hardswish, F.hardsigmoid,
    F.hardtanh, F.relu6, F.sigmoid, F.tanh, torch.sigmoid, torch.tanh, torch.clamp, Tensor.sigmoid, Tensor.tanh,
    Tensor.clamp, Tensor.sigmoid_, Tensor.tanh_, Tensor.clamp_,
}
NORMALISERS = {F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm, F.local_response_norm,
               F.scaled_dot_product_attention, F.multi_head_attention_forward}
BATCH_NORM = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")  # after the input
COMPLETE = 1e-4  # of the terms' size: a larger gap is no rounding


@dataclass(frozen=True)
class FullGrad(Attribution):
    """FullGrad: what the input and every bias contributed to the score.

    S = sum(x o dS/dx) + sum_l sum(b_l o dS/dz_l) for a piecewise linear network, z_l the output to which bias b_l is
    added: of convolutions (batch norm folded in first), of batch norms left over (beta - mean gamma / s), of linear
    layers. Other elementwise activations have the implicit bias r(z) - r'(z) z, a product of two computed tensors minus
    the product. The map sums the terms over channels, brings them bilinearly to the input's size and adds them. `post`:
    "rescaled" is the paper's psi: absolute values, then each layer's least value to 0 and its largest to 1. "abs"
    leaves the values and "signed" also the signs; in both a cell keeps its sum, so that the signed map and the terms
    without a place (linear layers, 1x1 maps) sum to S. View: signed.

    Reads     one model, images
    Yields    one map an image, at the input's size, unitless if rescaled, else in units of the score a pixel; the gap
              between the terms' sum and the score, which is 0 where the decomposition holds; the part of the score that
              has no place
    Raises    XaiError if the network normalises by what it computes (layer norm, group norm, attention) or is a network
              of tokens
    Cost      a forward and a backward through the whole network, beside the common forward
    Reference Srinivas and Fleuret 2019, "Full-Gradient Representation for Neural Network Visualization",
              arXiv:1905.00780
    """

    post: str = param(
        "rescaled", "rescaled: absolute terms, each layer to 0..1 (the paper); abs: as they are; signed: they sum to S",
        choices=("rescaled", "abs", "signed"))

    needs = frozenset({"gradients", "images"})
    view: ClassVar[View] = "signed"

    def passes(self, model: Model) -> Passes:
        """One forward and one backward through the whole network."""
        return Passes(forwards=1, backwards=1)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size."""
        terms = _Terms(batch, self.post)
        with terms:
            score, gradient = batch.input_gradient(batch.inputs, target)
        terms.add(batch.inputs, gradient)
        return Maps(terms.map, panels=tuple(terms.panels(score.detach().double())))


class _Terms(TorchFunctionMode):
    """Watches one forward for biases; each adds its term when the backward reaches the output that it was added to.

    No gradient is kept: a hook on the output sees it once. A hook set before an in-place operation still gets the
    gradient of the value before it, so in-place activations do no harm. Only what is done in place to a view goes round
    the view itself: it is done on a copy, which is heard, and written back.
    """

    def __init__(self, batch: Batch, post: str) -> None:
        super().__init__()
        self._batch, self._post = batch, post
        n, _, *size = batch.inputs.shape
        exact = batch.inputs.new_zeros(n, dtype=torch.promote_types(batch.inputs.dtype, torch.float32))
        self.map = exact.new_zeros(n, *size)
        self._total, self._size, self._unplaced = (torch.zeros_like(exact) for _ in range(3))

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        """Run the function; where it adds a bias, listen to its output's gradient."""
        kwargs = kwargs or {}
        if inside_backward():
            return func(*args, **kwargs)
        bias = _bias(func, args, kwargs)
        aside = _aside(func, args)
        output = func(*aside, *args[len(aside) :], **kwargs)
        if func in PRODUCTS and all(isinstance(a, Tensor) and a.requires_grad for a in args[:2]):
            bias = -output.detach()
        if bias is not None and output.requires_grad:
            output.register_hook(partial(self.add, bias))
        return args[0].copy_(output) if aside and output is aside[0] else output

    def add(self, bias: Tensor, gradient: Tensor) -> None:
        """Add the term bias o gradient, both (n, K, h, w), or (n, K) for one without a place."""
        term = (bias.detach() * gradient.detach()).to(self.map.dtype)
        sums = term.flatten(1).sum(1)
        self._total += sums
        self._size += sums.abs()
        if term.ndim != 4 or term.shape[2:].numel() == 1:
            self._unplaced += sums
            return
        if self._post != "signed":
            term = term.abs()
        if self._post == "rescaled":
            low, high = term.amin((1, 2, 3), keepdim=True), term.amax((1, 2, 3), keepdim=True)
            term = (term - low) / torch.where(high > low, high - low, 1)
        self.map += spread(term.sum(1), self.map.shape[1:], keep_sum=self._post != "rescaled")

    def panels(self, score: Tensor) -> Iterator[Number]:
        """The completeness gap, relative and absolute, and the part without a place, of every picture; score (n,)."""
        limit = max(COMPLETE, 8 * torch.finfo(self._batch.inputs.dtype).eps)
        columns = (self._total, score, self._size, self._unplaced)
        rows = zip(self._batch.hashes, *(c.tolist() for c in columns), strict=True)
        for picture, total, said, size, unplaced in rows:
            gap = total - said
            yield Number(key="completeness", title="Completeness gap", picture=picture, unit="of the score",
                         value=abs(gap / said) if said else None, note=_verdict(total, said, size, limit))
            yield Number(key="completeness_gap", title="Completeness gap, absolute", picture=picture, value=gap,
                         unit="score", note="The sum of all terms minus the score.")
            yield Number(key="unplaced", title="Part of the score without a place", picture=picture, value=unplaced,
                         unit="score", note="From the biases of linear layers and of 1x1 maps; it is not on the map.")


def _verdict(total: float, score: float, size: float, limit: float) -> str:
    said = f"The terms sum to {total:.6g}, the score is {score:.6g}: "
    if abs(total - score) <= limit * (size + abs(score)):
        return said + "nothing is missing."
    return said + ("part is unaccounted for. The network holds operations or constants that the split does not know; "
                   "read the map as approximate, or take integrated_gradients.")


def _aside(func: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    """A copy of the first argument where that is a view that the function may write to, wherever it stands."""
    if func not in ACTIVATIONS | PRODUCTS or not args or not isinstance(args[0], Tensor) or not args[0]._is_view():
        return []
    copy = args[0].clone()
    return [copy if arg is args[0] else arg for arg in args]


def _bias(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What the function adds, in the shape of its output or one that broadcasts to it; None if it is homogeneous."""

    def argument(place: int, name: str) -> Any:
        return args[place] if len(args) > place else kwargs.get(name)

    if func in NORMALISERS:
        raise _refused(getattr(func, "__name__", "a normalisation"))
    if func in CONVOLUTIONS:
        bias = argument(2, "bias")
        return None if bias is None else bias.reshape(1, -1, *(1,) * (args[0].ndim - 2))
    if func is F.linear:
        if args[0].ndim > 2:
            raise _refused("linear layers on tokens")
        constant: Tensor | None = argument(2, "bias")
        return constant
    if func is F.batch_norm:
        return _of_batch_norm(args[0].ndim, *(argument(i, name) for i, name in enumerate(BATCH_NORM, 1)))
    if func in ACTIVATIONS and args and args[0].requires_grad:
        return _intercept(func, args, kwargs)
    return None


def _of_batch_norm(ndim: int, mean: Tensor | None, variance: Tensor | None, gain: Tensor | None, shift: Tensor | None,
                   training: bool | None, _: float | None, eps: float | None) -> Tensor:
    if mean is None or variance is None or training:
        raise _refused("batch norm by the batch's own statistics")
    slope = torch.rsqrt(variance + (1e-5 if eps is None else eps)) * (1 if gain is None else gain)
    return ((0 if shift is None else shift) - mean * slope).reshape(1, -1, *(1,) * (ndim - 2))


def _intercept(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """r(z) - r'(z) z of an elementwise function at its first argument."""
    with torch._C.DisableTorchFunctionSubclass(), torch.enable_grad():
        place = args[0].detach().clone().requires_grad_()
        value = func(place.clone(), *args[1:], **kwargs)  # a clone, because the function may work in place
        (slope,) = torch.autograd.grad(value.sum(), place)
    found: Tensor = (value - slope * place).detach()
    return found


def _refused(got: str) -> Exception:
    allowed = "piecewise linear for fullgrad: convolutions, batch norm, linear layers, elementwise activations"
    return error("the network", allowed, f"one with {got}", "Use hirescam or integrated_gradients")
