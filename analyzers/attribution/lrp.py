"""LRP: the score handed back layer by layer to the pixels it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from analyzers.attribution import _propagation as way
from analyzers.attribution._gradients import REDUCTIONS, as_map, wide
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.errors import error
from xai.model import Model
from xai.panels import AnyPanel, Number, Text
from xai.rules import CLAMPS, SIGMOIDS, THROUGH_ZERO, Opened, Rule, depends
from xai.targets import Bound

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d,
                torch.conv_transpose3d)
SHIFTS = (torch.add, Tensor.add, torch.sub, Tensor.sub, Tensor.__rsub__)
JOINS = (torch.cat, torch.concat, torch.concatenate, torch.stack)
Apply = Callable[[Tensor, Tensor], Tensor]
Box = tuple[Tensor, Tensor] | None
COMPOSITES = ("epsilon_gamma_box", "epsilon_gamma", "epsilon_plus", "epsilon")


class _Relevance(Opened):
    """Rules under which (value x gradient) is relevance: R_in = sum over outputs of (share of the input in z) R_out.

    Each weighted sum z is answered by lin * (z / zr), zr the sum that the rule shares by, lin its part that comes from
    the input: the gradient of that is the rule. What biases, constants and epsilon keep is gathered in `absorbed`.
    """

    method, instead = "lrp", "input_x_gradient"

    def __init__(self, rule: str, epsilon: float, gamma: float, box: Box, leaf: Tensor) -> None:
        super().__init__()
        self.rule, self.epsilon, self.gamma, self.box, self.leaf = rule, epsilon, gamma, box, leaf
        self.absorbed, self.boxed = 0.0, False
        self.answer((F.linear, *CONVOLUTIONS), self._weighted)
        self.answer(SIGMOIDS, self._gate)
        self.answer(SHIFTS, self._shifted)
        self.table |= {Tensor.add_: self.written(torch.add), Tensor.sub_: self.written(torch.sub)}
        self.answer(JOINS, self._joined)
        self.answer((*THROUGH_ZERO, *CLAMPS), self._curve)
        self.answer((F.batch_norm,), self._batch_norm)

    def _tally(self, kept: Tensor) -> None:
        self.absorbed += wide(kept).sum().item()

    def bilinear(self, func: Rule, a: Tensor, b: Tensor) -> Tensor:
        """Each factor gets half of what the product has."""
        return way.carry((func(a, b.detach()) + func(a.detach(), b)) / 2, func(a.detach(), b.detach()))

    def quotient(self, func: Rule, a: Any, b: Any, **kwargs: Any) -> Any:
        """A divisor is a constant."""
        return func(a, b.detach() if depends(b) else b, **kwargs)

    def softmax(self, x: Tensor, dim: int) -> Tensor:
        """Attention weights are constants: relevance goes to the values that they mix."""
        return torch.softmax(x.detach(), dim)

    def spread(self, x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
        """What a norm divides by is a constant."""
        return torch.rsqrt(x.detach().square().mean(tuple(dims), keepdim=True) + eps)

    def affine(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """x * weight + bias; the bias keeps its part."""
        x = x if weight is None else x * weight
        return x if bias is None else way.carry(x, x + bias, self._tally)

    def _gate(self, func: Rule, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """A sigmoid is a gate, and gates are constants: relevance goes to what they let through."""
        return func(x.detach(), *args, **{k: v for k, v in kwargs.items() if k != "inplace"})

    def _curve(self, func: Rule, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """An activation with f(0) = 0 hands back what it is given: it is x times f(x) / x."""
        kwargs.pop("inplace", None)
        plain = x.detach()
        away = torch.where(plain.abs() < 1e-6, torch.full_like(plain, 1e-6), plain)
        return way.carry(x * (func(away, *args, **kwargs) / away), func(plain, *args, **kwargs), self._tally)

    def _shifted(self, func: Rule, a: Any, b: Any, **kwargs: Any) -> Any:
        """A constant that is added keeps its part."""
        if depends(a) and depends(b):
            return func(a, b, **kwargs)
        free = (v if depends(v) else torch.zeros_like(v) if isinstance(v, Tensor) else 0 for v in (a, b))
        return way.carry(func(*free, **kwargs), func(a, b, **kwargs), self._tally)

    def _joined(self, func: Rule, parts: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        """Constants that are joined (class tokens) keep their part."""
        if all(depends(p) for p in parts):
            return func(parts, *args, **kwargs)
        free = [p if depends(p) else torch.zeros_like(p) for p in parts]
        return way.carry(func(free, *args, **kwargs), func(parts, *args, **kwargs), self._tally)

    def _batch_norm(self, func: Rule, x: Tensor, mean: Tensor | None, var: Tensor | None,
                    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
                    momentum: float = 0.1, eps: float = 1e-5) -> Tensor:
        if training or mean is None or var is None:
            raise ValueError("with the statistics of the batch")
        scaled = func(x, torch.zeros_like(mean), var, weight, None, False, momentum, eps)
        return way.carry(scaled, func(x, mean, var, weight, bias, False, momentum, eps), self._tally)

    def _weighted(self, func: Rule, x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any,
                  **kwargs: Any) -> Tensor:
        """A linear layer or convolution, by the rule that the composite has for it."""
        if depends(weight) or depends(bias):
            raise ValueError("with weights that depend on the picture")
        value = func(x.detach(), weight, bias, *args, **kwargs)

        def apply(a: Tensor, w: Tensor) -> Any:
            return func(a, w, None, *args, **kwargs)

        if func is F.linear or self.rule == "epsilon":
            lin, shared = apply(x, weight), value
        elif self.box is not None and x is self.leaf:
            lin, shared = self._boxed(apply, x, weight)
        else:
            lin, shared = self._positive(apply, x, weight, bias, value)
        below = shared + torch.where(shared >= 0, self.epsilon, -self.epsilon).to(shared)
        ratio = value / below.masked_fill(below == 0, 1)
        return way.carry(lin * ratio, value, self._tally)

    def _boxed(self, apply: Apply, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """z-box: what each pixel adds above its least, or below its most, possible contribution; no bias."""
        assert self.box is not None
        self.boxed = True
        low, high = self.box
        lin = apply(x, weight) - apply(low, weight.clamp(min=0)) - apply(high, weight.clamp(max=0))
        return lin, lin.detach()

    def _positive(self, apply: Apply, x: Tensor, weight: Tensor, bias: Tensor | None,
                  value: Tensor) -> tuple[Tensor, Tensor]:
        """z-plus, or gamma: contributions of the sum's own sign count 1 + gamma times. Inputs may have either sign."""
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        plus = apply(x * (x > 0), up)
        if bool((x < 0).any()):
            plus = plus + apply(x * (x < 0), down)
        shape = (-1, *(1,) * (value.ndim - 2))
        offset = torch.zeros_like(value) if bias is None else bias.view(shape).expand_as(value)
        if self.rule == "epsilon_plus":
            return plus, plus.detach() + offset.clamp(min=0)
        lin = apply(x, weight)
        extra = torch.where(value >= 0, plus, lin - plus)
        kept = torch.where(value >= 0, offset.clamp(min=0), offset.clamp(max=0))
        return lin + self.gamma * extra, value + self.gamma * (extra.detach() + kept)


@dataclass(frozen=True)
class LRP(Attribution):
    """Layer-wise relevance propagation: how much of the score each pixel is given back.

    R_i = sum_j a_i w_ij / (sum_i a_i w_ij + b_j) R_j from the score down, by the rules of a composite. Linear layers
    have epsilon; convolutions have gamma (contributions of the sum's own sign count 1 + gamma times), z-plus (positive
    contributions only) or epsilon; box is the z-box rule at the pixels, which are bounded. Batch norm is folded into
    the convolution before it. Activations hand on what they are given; gates, attention weights and what a norm
    divides by are constants (Ali et al. 2022); two other factors share evenly. The map adds up to the score but for
    what biases, constants and epsilon absorb: that share stands beside it.

    Reads     one model, images
    Yields    one signed map an image, at the input's size, in units of the score, and the share of the score absorbed
    Raises    XaiError if a function of the network has no rule, so that relevance would be lost or made
    Cost      one forward and one backward, each with up to three convolutions for one
    Reference Bach et al. 2015, "On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance
              propagation", doi:10.1371/journal.pone.0130140 (epsilon); Montavon et al. 2019, "Layer-wise relevance
              propagation: an overview", doi:10.1007/978-3-030-28954-6_10 (gamma, z-box, composites); Ali et al. 2022,
              arXiv:2202.07304 (attention and layer norm)
    """

    rule: str = param("epsilon_gamma_box", "composite: epsilon_gamma_box, epsilon_gamma, epsilon_plus or epsilon",
                      choices=COMPOSITES)
    gamma: float = param(0.25, "how much more contributions of the sum's own sign count, in the gamma rule", low=0)
    epsilon: float = param(1e-6, "what is added to each sum before dividing; it absorbs relevance", low=0)
    reduce: str = param("sum", "what becomes of the channels: sum (signed), max_abs or sum_abs", choices=REDUCTIONS)

    needs = frozenset({"gradients", "hooks", "images"})

    def passes(self, model: Model) -> Passes:
        """One more forward, under the rules, and its backward."""
        return Passes(forwards=1, backwards=1)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size, signed unless reduce takes absolute values."""
        batch.output()  # the fast form is built outside the rules
        # Each picture by itself: where a sum is nearly 0, the rounding of a batch would be divided by it.
        found = [self._part(batch, batch.inputs[rows], bound) for rows, bound in way.parts(batch, target, 1)]
        values, start = (torch.cat(part) for part in zip(*((v, s) for v, s, _ in found), strict=True))
        return Maps(as_map(values, self.reduce, batch), panels=self._panels(batch, values, start, found[0][2]))

    def _part(self, batch: Batch, x: Tensor, target: Bound) -> tuple[Tensor, Tensor, bool]:
        """Relevance (m, C, H, W), the scores (m,) it was shared from, and whether the box rule found no place."""
        leaf = x.detach().clone().requires_grad_()
        box = self._box(batch, x)
        with torch.enable_grad():
            with _Relevance(self.rule, self.epsilon, self.gamma, box, leaf) as rules:
                output = batch.model.run(leaf)
            score = target(output)
            leaves = [leaf, output, *(box or ())]
            found = way.backward(batch, score, leaves, rules.method, rules.instead)
        shares = [wide(value.detach()) * wide(g) for value, g in zip(leaves, found, strict=True)]
        values, start = shares[0] + sum(shares[2:]), shares[1].flatten(1).sum(1)
        self._checked(batch, values, start, rules.absorbed)
        return values, start, box is not None and not rules.boxed

    def _box(self, batch: Batch, x: Tensor) -> Box:
        if self.rule != "epsilon_gamma_box":
            return None
        ready = batch.model.preprocessing
        if ready.mean is None:
            raise error("the preprocessing of this model", "known for the z-box rule, which needs a pixel's range",
                        "no mean and std", "Add mean and std, or set lrp.rule=epsilon_gamma")
        ends = (ready.constant(level).to(x).expand_as(x) for level in (0, 1))
        low, high = (end.clone().requires_grad_() for end in ends)
        return low, high

    def _checked(self, batch: Batch, values: Tensor, start: Tensor, absorbed: float) -> None:
        """All relevance is in the map or absorbed; a function without a rule would break that."""
        lost = start.sum().item() - values.sum().item() - absorbed
        scale = start.abs().sum().item()
        if abs(lost) > 0.01 * scale and abs(lost) > 1e-4 * values.abs().sum().item():
            got = f"{batch.model.spec}, where {abs(lost) / max(scale, 1e-12):.0%} of the score goes astray"
            raise error("the network", "one whose functions lrp has rules for", got, "Use input_x_gradient")

    def _panels(self, batch: Batch, values: Tensor, start: Tensor, unboxed: bool) -> tuple[AnyPanel, ...]:
        panels: list[AnyPanel] = []
        for digest, total, score in zip(batch.hashes, values.sum((1, 2, 3)).tolist(), start.tolist(), strict=True):
            note = f"Of a score of {score:.6g} the map holds {total:.6g}; biases, constants and epsilon keep the rest."
            panels.append(Number(key="absorbed", title="Absorbed on the way", picture=digest, note=note,
                                 value=1 - total / score if score else None, unit="of the score"))
            if unboxed:
                panels.append(Text(key="box", title="First layer", picture=digest, tone="warning",
                                   text="No convolution reads the pixels themselves: the z-box rule was not used."))
        return tuple(panels)
