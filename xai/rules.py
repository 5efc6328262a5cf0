"""Other rules for the functions that a network calls: modules, reused modules and plain functions alike.

A function mode sees every function of torch that is called and may answer it otherwise. Norms and attention are opened
into the steps that LRP, DeepLIFT and the linear interpreter each have a rule for. The network is not touched.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xai.errors import error

Rule = Callable[..., Any]

RELUS: tuple[Rule, ...] = (F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_)
CLAMPS: tuple[Rule, ...] = (F.relu6, F.hardtanh, F.hardtanh_, Tensor.clamp, torch.clamp, Tensor.clip, torch.clip,
                            Tensor.clamp_min, torch.clamp_min)
SIGMOIDS: tuple[Rule, ...] = (torch.sigmoid, Tensor.sigmoid, F.sigmoid, F.hardsigmoid)
THROUGH_ZERO: tuple[Rule, ...] = (F.gelu, F.silu, F.hardswish, F.mish, F.elu, F.selu, F.celu, F.softsign, F.tanh,
                                  torch.tanh, Tensor.tanh)
PRODUCTS: tuple[Rule, ...] = (torch.mul, Tensor.mul, torch.multiply, Tensor.multiply, torch.matmul, Tensor.matmul,
                              torch.bmm, Tensor.bmm)
QUOTIENTS: tuple[Rule, ...] = (torch.div, Tensor.div, torch.true_divide, Tensor.true_divide)
NORMS: tuple[Rule, ...] = (torch.norm, Tensor.norm, torch.linalg.vector_norm)
SOFTMAXES: tuple[Rule, ...] = (F.softmax, torch.softmax, Tensor.softmax)
IN_PLACE: dict[Rule, Rule] = {
    Tensor.mul_: torch.mul, Tensor.div_: torch.div, Tensor.sigmoid_: torch.sigmoid, torch.sigmoid_: torch.sigmoid,
    Tensor.tanh_: torch.tanh, torch.tanh_: torch.tanh, Tensor.clamp_: torch.clamp,
}


def _open() -> Callable[..., Any]:
    """torch's own multi-head attention with its door to function modes shut, so that a mode sees what is inside it."""
    own = F.multi_head_attention_forward
    seen = {**own.__globals__, "has_torch_function": lambda tensors: False}
    made = types.FunctionType(own.__code__, seen, own.__name__, own.__defaults__, own.__closure__)
    made.__kwdefaults__ = own.__kwdefaults__
    return made


MULTI_HEAD = _open()


def depends(value: Any) -> bool:
    """Whether the gradient of the input passes through the value (or through one of a list)."""
    if isinstance(value, list | tuple):
        return any(depends(v) for v in value)
    return isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter)


class Rules(TorchFunctionMode):
    """While it is open, the functions in `table` are answered by their rules: rule(function, *args, **kwargs) -> value.

    A rule is asked only where an argument depends on the input. The mode is off inside a rule. What goes wrong inside a
    rule becomes an XaiError that names the function and `instead`, the method to take then.
    """

    method, instead = "the method", "integrated_gradients"

    def __init__(self) -> None:
        super().__init__()
        self.table: dict[Rule, Rule] = {}

    def answer(self, functions: Iterable[Rule], rule: Rule) -> None:
        """Answer all these functions by one rule."""
        self.table |= dict.fromkeys(functions, rule)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = self.table.get(func)
        if rule is None or not torch.is_grad_enabled() or not depends([*args, *kwargs.values()]):
            return func(*args, **kwargs)
        try:
            return rule(func, *args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AssertionError) as problem:
            name = getattr(func, "__name__", str(func))
            why = str(problem).partition("\n")[0][:120]
            raise error("the network", f"one whose functions {self.method} has rules for",
                        f"{name} in a form that it cannot follow ({why})", f"Use {self.instead}") from problem


class Opened(Rules):
    """Rules that open norms and attention into products, softmax and spreads. Subclasses say what those three are."""

    def __init__(self) -> None:
        super().__init__()
        self.answer(PRODUCTS, self.product)
        self.answer(QUOTIENTS, self.quotient)
        self.answer(SOFTMAXES, lambda func, x, dim=None, **k: self.softmax(x, dim))
        self.table |= {func: self.written(plain) for func, plain in IN_PLACE.items()}
        self.table |= {
            F.layer_norm: self._layer_norm, F.group_norm: self._group_norm, F.instance_norm: self._instance_norm,
            F.rms_norm: self._rms_norm, F.normalize: self._normalize,
            F.scaled_dot_product_attention: lambda func, *a, **k: self._attention(*a, **k),
            F.multi_head_attention_forward: self._heads, torch.einsum: self._einsum, torch.addcmul: self._addcmul,
        }

    def product(self, func: Rule, a: Any, b: Any) -> Tensor:
        """a * b, a @ b, ...: where one factor is constant, as it is; else the method's rule."""
        return self.bilinear(func, a, b) if depends(a) and depends(b) else func(a, b)

    def bilinear(self, func: Rule, a: Tensor, b: Tensor) -> Tensor:
        """The rule for a product of two factors that both depend on the input."""
        raise NotImplementedError

    def quotient(self, func: Rule, a: Any, b: Any, **kwargs: Any) -> Tensor:
        """The rule for a / b."""
        raise NotImplementedError

    def softmax(self, x: Tensor, dim: int) -> Tensor:
        """The rule for a softmax over one axis."""
        raise NotImplementedError

    def spread(self, x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
        """The rule for 1 / sqrt(mean of x^2 over dims + eps), dims kept."""
        raise NotImplementedError

    def affine(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """x * weight + bias, shapes that broadcast."""
        x = x if weight is None else x * weight
        return x if bias is None else x + bias

    def written(self, plain: Rule) -> Rule:
        """An in-place function: its plain form's rule on a copy, and the result written where it belongs."""
        def rule(func: Rule, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            answer = self.table.get(plain)
            copy = x.clone()
            others = [copy if a is x else a for a in args]
            return x.copy_(plain(copy, *others, **kwargs) if answer is None else answer(plain, copy, *others, **kwargs))

        return rule

    def _einsum(self, func: Rule, equation: str, *operands: Any) -> Any:
        if sum(map(depends, operands)) < 2:
            return func(equation, *operands)
        a, b = operands  # three factors that depend on the input have no rule
        return self.product(lambda one, two: func(equation, one, two), a, b)

    def _addcmul(self, func: Rule, x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Any:
        add: Rule = self.table.get(torch.add, lambda func, *both: func(*both))
        return add(torch.add, x, self.product(torch.mul, a, b) * value)

    def _layer_norm(self, func: Rule, x: Tensor, shape: Sequence[int], weight: Tensor | None = None,
                    bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
        dims = tuple(range(-len(shape), 0))
        centred = x - x.mean(dims, keepdim=True)
        return self.affine(self.product(torch.mul, centred, self.spread(centred, dims, eps)), weight, bias)

    def _rms_norm(self, func: Rule, x: Tensor, shape: Sequence[int], weight: Tensor | None = None,
                  eps: float | None = None) -> Tensor:
        dims = tuple(range(-len(shape), 0))
        scale = self.spread(x, dims, torch.finfo(x.dtype).eps if eps is None else eps)
        return self.affine(self.product(torch.mul, x, scale), weight, None)

    def _group_norm(self, func: Rule, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
                    eps: float = 1e-5) -> Tensor:
        grouped = x.reshape(len(x), groups, -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        normed = self.product(torch.mul, centred, self.spread(centred, (2,), eps)).view(x.shape)
        shape = (-1,) + (1,) * (x.ndim - 2)
        weight, bias = (None if p is None else p.view(shape) for p in (weight, bias))
        return self.affine(normed, weight, bias)

    def _instance_norm(self, func: Rule, x: Tensor, running_mean: Tensor | None = None,
                       running_var: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None,
                       use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5) -> Tensor:
        if not use_input_stats:
            raise ValueError("with running statistics")
        return self._group_norm(func, x, x.shape[1], weight, bias, eps)

    def _normalize(self, func: Rule, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12,
                   out: Tensor | None = None) -> Tensor:
        if p != 2 or out is not None:
            raise ValueError("of another order, or written elsewhere")
        return self.product(torch.mul, x, self.spread(x, (dim,), eps**2) / math.sqrt(x.shape[dim]))

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
                   is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor:
        if is_causal or enable_gqa or dropout_p:
            raise ValueError("causal, grouped or with dropout")
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        logits = self.product(torch.matmul, q * scale, k.transpose(-2, -1))
        if attn_mask is not None:
            hidden = attn_mask.dtype == torch.bool
            logits = logits.masked_fill(~attn_mask, -torch.inf) if hidden else logits + attn_mask
        return self.product(torch.matmul, self.softmax(logits, -1), v)

    def _heads(self, func: Rule, query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int,
               in_proj_weight: Tensor | None, in_proj_bias: Tensor | None, bias_k: Tensor | None, bias_v: Tensor | None,
               add_zero_attn: bool, dropout_p: float, out_proj_weight: Tensor, out_proj_bias: Tensor | None,
               training: bool = True, key_padding_mask: Tensor | None = None, need_weights: bool = True,
               attn_mask: Tensor | None = None, **more: Any) -> tuple[Tensor, None]:
        """Multi-head attention of (tokens, n, width), as torch's function has it, without its rarer options."""
        rare = (bias_k, bias_v, key_padding_mask, *(v for k, v in more.items() if k != "average_attn_weights"))
        asked = any(v is not None and v is not False for v in rare)
        if in_proj_weight is None or add_zero_attn or need_weights or asked or query.ndim != 3:
            raise ValueError("with weights asked for, padding, added keys or no batch")
        weights: Sequence[Tensor] = torch.chunk(in_proj_weight, 3)
        biases: Sequence[Any] = (None,) * 3 if in_proj_bias is None else torch.chunk(in_proj_bias, 3)
        linear: Rule = self.table.get(F.linear, lambda func, *a: func(*a))
        made = [linear(F.linear, x.transpose(0, 1), w, b)
                for x, w, b in zip((query, key, value), weights, biases, strict=True)]
        q, k, v = (p.view(*p.shape[:2], num_heads, -1).transpose(1, 2) for p in made)
        mixed = self._attention(q, k, v, attn_mask).transpose(1, 2).flatten(2)
        return linear(F.linear, mixed, out_proj_weight, out_proj_bias).transpose(0, 1), None
