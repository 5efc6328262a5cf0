"""DeepLIFT: what each pixel's difference from a baseline does to the score's difference, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from analyzers.attribution import _propagation as way
from analyzers.attribution._gradients import REDUCTIONS, as_map, completeness, wide
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.baselines import baseline, check_baseline
from xai.batch import Batch
from xai.errors import error
from xai.model import Model
from xai.rules import CLAMPS, NORMS, RELUS, SIGMOIDS, THROUGH_ZERO, Opened, Rule, depends
from xai.targets import Bound

CURVES: tuple[Rule, ...] = (
    *RELUS, *CLAMPS, *SIGMOIDS, *THROUGH_ZERO, F.leaky_relu, torch.prelu, F.prelu, F.softplus,
    F.logsigmoid, F.threshold, F.hardshrink, F.softshrink, torch.exp, Tensor.exp, torch.log, Tensor.log, torch.sqrt,
    Tensor.sqrt, torch.rsqrt, Tensor.rsqrt, torch.square, Tensor.square, torch.pow, Tensor.pow, torch.reciprocal,
    Tensor.reciprocal, torch.abs, Tensor.abs, torch.erf, Tensor.erf,
)
SWAPPED: tuple[Rule, ...] = (Tensor.__rdiv__, Tensor.__rtruediv__)


class _Pairs(Opened):
    """Rescale rules for stacked rows: first the pictures, then their baselines, in the same order."""

    method, instead = "deeplift", "integrated_gradients"

    def __init__(self) -> None:
        super().__init__()
        self.answer(CURVES, self._curve)
        self.answer(SWAPPED, self._swapped)
        self.answer(NORMS, self._norm)
        self.answer((F.log_softmax, torch.log_softmax, Tensor.log_softmax), self._log_softmax)
        self.table |= {F.max_pool2d: self._max_pool, F.adaptive_max_pool2d: self._adaptive_max_pool}

    def secant(self, curve: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """curve(z) whose gradient is (f(x) - f(b)) / (x - b), an elementwise function's multiplier.

        Where x and b are too close to divide by (sqrt of the precision), it is the derivative at x.
        """
        plain = z.detach()
        value = curve(plain)
        (x, b), (fx, fb) = plain.chunk(2), value.chunk(2)
        gap = (x - b).nan_to_num()
        small = gap.abs() <= (torch.finfo(z.dtype).eps ** 0.5 * (x.abs() + b.abs())).clamp(1e-10)
        slope = (fx - fb) / gap.masked_fill(small, 1)
        if small.any():
            leaf = x.clone().requires_grad_()
            slope = torch.where(small, torch.autograd.grad(curve(leaf).sum(), leaf)[0], slope)
        return way.carry(z * torch.cat([slope, slope]), value)

    def bilinear(self, func: Rule, a: Tensor, b: Tensor) -> Tensor:
        """The rise of a product, shared evenly by its factors: each one's rise times the other's mean of x and b."""
        carrier = func(a, _middle(b)) + func(_middle(a), b)
        return way.carry(carrier, func(a.detach(), b.detach()))

    def quotient(self, func: Rule, a: Any, b: Any, **kwargs: Any) -> Tensor:
        """a times the reciprocal of b."""
        if kwargs.get("rounding_mode") is not None:
            raise ValueError("rounded")
        return self.product(torch.mul, a, self.secant(torch.reciprocal, b)) if depends(b) else func(a, b)

    def softmax(self, x: Tensor, dim: int) -> Tensor:
        """exp, sum, reciprocal, product; one constant is taken off a picture and its baseline alike."""
        _, powers = self._powers(x, dim)
        return self.bilinear(torch.mul, powers, self.secant(torch.reciprocal, powers.sum(dim, keepdim=True)))

    def _log_softmax(self, func: Rule, x: Tensor, dim: int, **kwargs: Any) -> Tensor:
        lowered, powers = self._powers(x, dim)
        return lowered - self.secant(torch.log, powers.sum(dim, keepdim=True))

    def _powers(self, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        top = torch.maximum(*x.detach().amax(dim, keepdim=True).chunk(2))
        lowered = x - torch.cat([top, top])
        return lowered, self.secant(torch.exp, lowered)

    def spread(self, x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
        """Square, mean, inverse root."""
        return self.secant(torch.rsqrt, self.secant(torch.square, x).mean(tuple(dims), keepdim=True) + eps)

    def _curve(self, func: Rule, x: Any, *args: Any, **kwargs: Any) -> Tensor:
        if depends([*args, *kwargs.values()]) or not isinstance(x, Tensor):
            raise ValueError("with two arguments that depend on the picture")
        kwargs.pop("inplace", None)
        plain = {torch.relu_: torch.relu, Tensor.relu_: torch.relu, F.hardtanh_: F.hardtanh}.get(func, func)
        value = self.secant(lambda z: plain(z, *args, **kwargs), x)
        return x.copy_(value) if plain is not func else value

    def _swapped(self, func: Rule, x: Tensor, over: Any) -> Tensor:
        return self.product(torch.mul, over, self.secant(torch.reciprocal, x))

    def _norm(self, func: Rule, x: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, *,
              ord: Any = 2, dtype: Any = None) -> Tensor:
        if p not in (2, "fro") or ord != 2 or dim is None:
            raise ValueError("of another order, or over everything")
        return self.secant(torch.sqrt, self.secant(torch.square, x).sum(dim, keepdim=keepdim))

    def _max_pool(self, func: Rule, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
                  dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False) -> Any:
        found = F.max_pool2d(x.detach(), kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)
        return self._pooled(x, *found, return_indices)

    def _adaptive_max_pool(self, func: Rule, x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        return self._pooled(x, *F.adaptive_max_pool2d(x.detach(), output_size, return_indices=True), return_indices)

    def _pooled(self, x: Tensor, value: Tensor, places: Tensor, with_places: bool) -> Any:
        """The rise of each maximum goes to the place of the larger of the two, the picture's or the baseline's."""
        (mine, other), (top, base) = places.chunk(2), value.chunk(2)
        place = torch.where(top >= base, mine, other)
        picked = x.flatten(2).gather(2, torch.cat([place, place]).flatten(2)).view_as(value)
        here, there = picked.detach().chunk(2)
        gap = here - there
        small = gap.abs() <= 1e-10
        share = torch.where(small, 1, (top - base) / gap.masked_fill(small, 1))
        pooled = way.carry(picked * torch.cat([share, share]), value)
        return (pooled, places) if with_places else pooled


def _middle(values: Tensor) -> Tensor:
    x, b = values.detach().chunk(2)
    half = (x + b) / 2
    return torch.cat([half, half])


@dataclass(frozen=True)
class DeepLIFT(Attribution):
    """DeepLIFT: what each pixel's difference from a baseline adds to the score's.

    M = sum over channels of (x - b) * m, m the chain of multipliers of the rescale rule: (f(x) - f(b)) / (x - b) at
    each activation, the derivative where the two are close. Max-pools give the rise to the larger of the two maxima; a
    product of two branches shares it evenly (the Shapley value of two players), and norms, softmax and attention are
    made of such steps. It follows functions as well as modules, reused or not. The map adds up to S(x) - S(b); how far
    it misses stands beside it, and a gross miss (over 5 % and more than rounding) is an error.

    Reads     one model, images
    Yields    one signed map an image, at the input's size, in units of the score, and its completeness gap
    Raises    XaiError if a function of the network has no rule, or the baseline is flat and the normalisation unknown
    Cost      two forwards and two backwards: of the picture and of its baseline
    Reference Shrikumar, Greenside, Kundaje 2017, "Learning important features through propagating activation
              differences", arXiv:1704.02685, section 3.5.1 (rescale rule)
    """

    baseline: str | float = param("black", "what to differ from: black, zero (mean colour), grey, white, blur, 0 to 1")
    reduce: str = param("sum", "what becomes of the channels: sum (signed), max_abs or sum_abs", choices=REDUCTIONS)

    needs = frozenset({"gradients", "hooks", "images"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline(self.baseline, self.name())

    def passes(self, model: Model) -> Passes:
        """A forward and a backward of the picture and of its baseline."""
        return Passes(forwards=2, backwards=2)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size, signed unless reduce takes absolute values."""
        batch.output()  # the fast form is built outside the rules
        start = baseline(batch, self.baseline, self.name())
        found = [self._part(batch, batch.inputs[rows], start[rows], bound)
                 for rows, bound in way.parts(batch, target, max(1, batch.chunk // 2))]
        values, here, there = (torch.cat(part) for part in zip(*found, strict=True))
        self._checked(batch, values, here, there)
        return Maps(as_map(values, self.reduce, batch), panels=completeness(batch, values, here, there))

    def _part(self, batch: Batch, x: Tensor, start: Tensor, target: Bound) -> tuple[Tensor, Tensor, Tensor]:
        """Attributions (m, C, H, W) and the scores (m,) of pictures and baselines."""
        m = len(x)
        with torch.enable_grad():
            leaf = torch.cat([x, start]).requires_grad_()
            with _Pairs() as rules:
                output = batch.model.run(leaf)
                both = target.take([*range(m), *range(m)])(output)  # it may have curves of its own: a probability
            here, there = both[:m], both[m:]
            found = way.backward(batch, here, [leaf], rules.method, rules.instead)[0]
        return wide(x - start) * wide(found[:m]), here.detach(), there.detach()

    def _checked(self, batch: Batch, values: Tensor, here: Tensor, there: Tensor) -> None:
        rise, rounding = here - there, 1e3 * torch.finfo(here.dtype).eps * torch.maximum(here.abs(), there.abs())
        gap = (values.sum((1, 2, 3)) - rise).abs()
        missed = (gap > 0.05 * rise.abs()) & (gap > 1e-3 * values.abs().sum((1, 2, 3))) & (gap > rounding)
        if missed.any():
            worst = int((gap / rise.abs()).where(missed, 0).argmax())
            got = f"{batch.model.spec}, where the map is {gap[worst]:.3g} off the score's rise of {rise[worst]:.3g}"
            raise error("the network", "one whose functions deeplift has rules for", got, "Use integrated_gradients")
