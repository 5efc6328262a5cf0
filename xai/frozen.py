"""A network frozen at one input: every decision that it made there is held, and what remains is an affine function.

After Navarrete Michelini, Liu, Lu, Jiang 2019, "A Tour of Convolutional Networks Guided by Linear Interpreters",
arXiv:1908.05168. A function mode sees modules, functions and methods alike; the network is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from xai.attention import attend
from xai.gates import CLAMPS, GATES, KINKED, SWITCHES, gate_of
from xai.layers import inside_backward
from xai.rules import MULTI_HEAD, Opened, Rule, depends
from xai.tangents import Curved, intercept, mapped, pushed, summed

MODES = ("gate", "tangent")
QUERIES = frozenset({
    "size", "dim", "numel", "nelement", "ndimension", "stride", "storage_offset", "is_floating_point", "is_complex",
    "is_contiguous", "__len__", "get_device", "element_size", "requires_grad_", "zeros_like", "ones_like", "empty_like",
    "full_like", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "is_nested", "register_hook",
    "__hash__", "__repr__",
})  # fmt: skip
VIEWS = frozenset({
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "swapaxes",
    "swapdims", "movedim", "moveaxis", "expand", "expand_as", "repeat", "tile", "repeat_interleave", "chunk", "split",
    "split_with_sizes", "tensor_split", "unbind", "narrow", "select", "__getitem__", "roll", "flip", "contiguous",
    "clone", "to", "float", "double", "half", "bfloat16", "type", "type_as", "view_as", "reshape_as", "broadcast_to",
    "interpolate", "upsample", "diagonal", "adjoint", "broadcast_tensors", "unfold",
})  # fmt: skip
SUMS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__isub__", "__rsub__",
                  "rsub", "subtract", "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "pad",
                  "_pad", "constant_pad_nd", "where", "masked_fill"})
LINEAR = VIEWS | SUMS | frozenset({
    "index_select", "gather", "take_along_dim", "fold", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "__setitem__", "copy_", "index_add", "index_add_", "scatter", "scatter_", "scatter_add", "scatter_add_", "tril",
    "triu", "sum", "mean", "cumsum", "neg", "neg_", "__neg__", "positive", "__pos__", "batch_norm", "dropout",
    "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "fft2", "ifft2", "rfft2", "irfft2", "fft",
    "ifft", "rfft", "irfft", "fftn", "ifftn", "real", "imag", "view_as_real", "view_as_complex", "rot90",
    "masked_fill_", "conj", "fftshift", "ifftshift", "diag_embed", "zero_", "fill_", "unsqueeze_", "squeeze_",
    "transpose_",
})  # fmt: skip
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
FACTORS: dict[str, tuple[int, int]] = dict.fromkeys(
    ("mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply", "matmul", "__matmul__", "mm", "bmm", "div", "div_",
     "__truediv__", "__itruediv__", "true_divide", "divide", "grid_sample", "linear", "outer", "dot", "mv", "kron",
     *CONVOLUTIONS), (0, 1)) | dict.fromkeys(("einsum", "baddbmm", "addmm", "addbmm", "addcmul"), (1, 2))
QUOTIENTS = frozenset({"div", "div_", "__truediv__", "__itruediv__", "true_divide", "divide"})
CONTRACTIONS = frozenset({"matmul", "__matmul__", "mm", "bmm", "einsum", "baddbmm", "addmm", "addbmm"})
KERNELS = frozenset({"linear", "grid_sample", *CONVOLUTIONS})  # the second factor says what is done to the first
NORMS: dict[Rule, str] = {F.layer_norm: "_layer_norm", torch.layer_norm: "_layer_norm", F.group_norm: "_group_norm",
                          F.instance_norm: "_instance_norm", F.rms_norm: "_rms_norm", F.normalize: "_normalize"}


@dataclass
class Tape:
    """What was held, in the order of the calls; `choices` says in words which factor of a product was."""

    entries: list[Any] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Held:
    """A value, or several, that no gradient passes: a comparison, an index, what was detached."""

    value: Any


class Frozen(Opened):
    """While it is open, a network runs as the affine function that it is at one input.

    role "record": at that input x0; the value is the network's own, autograd gives the rows of F, and the tape is
    filled. "affine": at any input of that shape, from the tape, without gradients. mode "gate": f(x) = x g(x) with g
    held, one factor of a product held, norms with their scale held; "tangent": the Jacobian. `constants` is told, in
    role "record", of every output to which something is added that does not depend on the input, and what (a callable,
    asked when it is needed).
    """

    method, instead = "linearscope", "integrated_gradients"

    def __init__(self, mode: str, role: str, tape: Tape,
                 constants: Callable[[Tensor, Callable[[], Any], str], None] | None = None) -> None:
        super().__init__()
        self.table = {}
        self.mode, self.role, self.tape, self._constants = mode, role, tape, constants
        self._at = 0
        self._ranks = WeakIdKeyDictionary()  # of values that may turn out to be gates

    # --- the tape ---
    def _next(self) -> Any:
        if self._at >= len(self.tape.entries):
            raise ValueError("another way through the network than at the input itself")
        self._at += 1
        return self.tape.entries[self._at - 1]

    def done(self) -> bool:
        """Whether every entry of the tape was used."""
        return self._at == len(self.tape.entries)

    def hold(self, make: Callable[[], Any]) -> Any:
        """A constant: made and kept at x0, the same ever after."""
        if self.role != "record":
            return self._next()
        made = make()
        self.tape.entries.append(made)
        return made

    # --- the door ---
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in QUERIES or inside_backward():
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return MULTI_HEAD(*args, **kwargs)
        if name in LINEAR:
            return self._linear(func, name, args, kwargs)
        if name == "__get__":
            found = func(*args, **kwargs)
            return found if not isinstance(found, Tensor) else self._curved(func, args, kwargs)
        places = FACTORS.get(name)
        if places is not None and not (name == "einsum" and len(args) != 3):  # of more factors no one is the other
            both = self.hold(lambda: sum(depends(a) for a in _at(places, args, kwargs)) == 2)
            if not both and not (name in QUOTIENTS and self.hold(lambda: depends(args[1]))):
                return self._linear(func, name, args, kwargs)
            return (self._product(func, name, places, args, kwargs) if both and self.mode == "gate"
                    else self._curved(func, args, kwargs))
        if not self.hold(lambda: depends([*args, *kwargs.values()])):
            return func(*args, **kwargs)
        return self._ranked(name, self._answer(func, name, args, kwargs))

    def _answer(self, func: Rule, name: str, args: Any, kwargs: Any) -> Any:
        """A function that is not linear in what depends on the input."""
        if func is F.scaled_dot_product_attention:
            return self._attends(args, kwargs)
        if name == "max_pool2d" and not kwargs.get("return_indices"):
            return self._max_pool(func, args, kwargs)
        if self.mode == "gate" and func in NORMS:
            return getattr(self, NORMS[func])(func, *args, **kwargs)
        if name in ("relu", "relu_"):
            return self._relu(func, name, args, kwargs)
        gate = gate_of(name, args, kwargs) if self.mode == "gate" or name in KINKED else None
        if gate is None:
            return self._curved(func, args, kwargs)
        x, native = args[0], name in KINKED and self.role == "record"
        held = self.hold(lambda: gate(x.detach()))
        if native:  # autograd has the gradient of the piece that x lies in
            return func(*args, **kwargs)
        made = x * held
        return x.copy_(made) if _in_place(name, kwargs) else made

    def _relu(self, func: Rule, name: str, args: Any, kwargs: Any) -> Any:
        """What it gave is kept, as autograd keeps it too, and compared with 0 when it is played: most never are."""
        if self.role == "affine":
            kept, version = self._next()
            if kept._version != version:
                raise ValueError("what a ReLU gave is overwritten")
            made = args[0] * (kept > 0)
            return args[0].copy_(made) if _in_place(name, kwargs) else made
        made = func(*args, **kwargs)
        self.hold(lambda: (made.detach(), made._version))
        return made

    # --- linear steps and the constants in them ---
    def _linear(self, func: Rule, name: str, args: Any, kwargs: Any) -> Any:
        if name == "batch_norm" and args[0].requires_grad and _own_statistics(args, kwargs):  # of weights: a constant
            raise ValueError("batch norm by the batch's own statistics")
        made = func(*args, **kwargs)
        if self.role == "record":
            if self._constants is not None and isinstance(made, Tensor) and made.requires_grad:
                constant = _constant(func, name, args, kwargs)
                if constant is not None:
                    made = self._told(made, *constant)
            if name in VIEWS and args and isinstance(args[0], Tensor) and args[0] in self._ranks:
                for part in made if isinstance(made, list | tuple) else [made]:
                    self._ranks[part] = self._ranks[args[0]]
        return made

    def _told(self, made: Tensor, constant: Callable[[], Any], kind: str) -> Tensor:
        """The value, of which `constants` knows now. A view is cloned first: what a network does to one in place goes
        round the step that made it, and its constant would not be heard of."""
        if self.role == "record" and self._constants is not None:
            made = made.clone() if made._is_view() else made
            self._constants(made, constant, kind)
        return made

    def affine(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """x * weight + bias."""
        made = super().affine(x, weight, bias)
        return made if bias is None else self._told(made, lambda: bias, "norm")

    def product(self, func: Rule, a: Any, b: Any) -> Tensor:
        """Inside a norm: its scale is held already."""
        made: Tensor = func(a, b)
        return made

    def spread(self, x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
        """What a norm divides by is held."""
        held: Tensor = self.hold(lambda: torch.rsqrt(x.detach().square().mean(tuple(dims), keepdim=True) + eps))
        return held

    # --- products ---
    def _product(self, func: Rule, name: str, places: tuple[int, int], args: Any, kwargs: Any) -> Any:
        """One factor is held: a switch, else an activation, else the smaller, else as `_second` says."""
        a, b = _at(places, args, kwargs)
        second = self.hold(lambda: self._second(name, a, b))
        in_place = _in_place(name, kwargs)
        held = self.hold(lambda: (b if second else a).detach().clone() if in_place else (b if second else a).detach())
        if self.role == "record":
            self.tape.choices.append(f"{name.strip('_')}: the {'second' if second else 'first'} factor, of "
                                     f"{'x'.join(map(str, held.shape[1:])) or '1'}")
        pair = (a, held) if second else (held, b)
        if in_place:
            return args[0].copy_((torch.div if name in QUOTIENTS else torch.mul)(*pair))
        if any(k in kwargs for k in ("weight", "grid", "other", "mat2")):
            key = next(k for k in ("weight", "grid", "other", "mat2") if k in kwargs)
            return func(pair[0], *args[1:], **{k: v for k, v in kwargs.items() if k != key}, **{key: pair[1]})
        return func(*args[: places[0]], *pair, *args[places[1] + 1 :], **kwargs)

    def _second(self, name: str, a: Tensor, b: Tensor) -> bool:
        if name in KERNELS or name in QUOTIENTS:
            return True
        ranks = [self._ranks.get(x, 0) for x in (a, b)]  # type: ignore[no-untyped-call]  # torch's gap
        if ranks[0] != ranks[1]:
            return bool(ranks[1] > ranks[0])
        if name in CONTRACTIONS:
            return False  # queries and keys stand before the values
        return b.numel() <= a.numel()

    def _ranked(self, name: str, made: Any) -> Any:
        """Note what looks like a gate, for the product that may come."""
        if self.role == "record" and isinstance(made, Tensor):
            if name in SWITCHES:
                self._ranks[made] = 2
            elif name.rstrip("_") in ("relu", *GATES) or name in CLAMPS:
                self._ranks[made] = 1
        return made

    # --- attention, pools, everything else ---
    def _attends(self, args: Any, kwargs: Any) -> Tensor:
        if self.mode == "tangent":
            return self._curved(_attention, args, kwargs)  # type: ignore[no-any-return]  # of tensors a tensor
        query, key, value, rest = _attention_arguments(*args, **kwargs)
        held = self.hold(lambda: attend(query.detach(), key.detach(), **rest).to(value.dtype))
        made: Tensor = held @ _grouped(query, value, rest)
        return made

    def _max_pool(self, func: Rule, args: Any, kwargs: Any) -> Tensor:
        x = args[0]
        if self.role == "affine":
            index = self._next()
            picked: Tensor = x.reshape(*x.shape[:-2], -1).gather(-1, index.flatten(-2)).view(index.shape)
            return picked
        both: tuple[Tensor, Tensor] = F.max_pool2d(*args, **{**kwargs, "return_indices": True})
        self.tape.entries.append(both[1])
        return both[0]

    def _curved(self, func: Rule, args: Any, kwargs: Any) -> Any:
        """The tangent at x0, f(z0) + J (z - z0); a value that no gradient passes is held."""
        if self.role == "record":
            return self._kept(func, args, kwargs)
        entry = self._next()
        if isinstance(entry, Held):
            return entry.value
        now = tree_flatten((args, kwargs))[0]
        made, moved = pushed(func, entry, [now[i] - entry.leaves[i] for i in entry.moving])
        value = summed(made, moved)
        return now[entry.moving[0]].copy_(value) if _in_place(getattr(func, "__name__", ""), kwargs) else value

    def _kept(self, func: Rule, args: Any, kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        moving = [i for i, leaf in enumerate(leaves) if depends(leaf)]
        copies = [leaf.detach().clone() if i in moving else leaf for i, leaf in enumerate(leaves)]
        made = func(*args, **kwargs)
        if not any(depends(part) for part in tree_flatten(made)[0]):
            # Cloned: what is held must not change with what the network goes on to do to it.
            held = mapped(made, lambda part: part.detach().clone() if isinstance(part, Tensor) else part)
            self.tape.entries.append(Held(held))
            return made
        entry = Curved(copies, spec, moving)
        self.tape.entries.append(entry)
        if not isinstance(made, Tensor):
            return made
        return self._told(made, lambda: intercept(func, entry), "activation")


def _at(places: tuple[int, int], args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The two factors of a product."""
    first, second = places
    a = args[first] if len(args) > first else None
    b = args[second] if len(args) > second else next(
        (kwargs[k] for k in ("weight", "grid", "other", "mat2") if k in kwargs), None)
    return a, b


def _in_place(name: str, kwargs: Any) -> bool:
    return bool(kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__")) or name in (
        "__imul__", "__itruediv__")


# --- constants ---
Constant = tuple[Callable[[], Any], str]


def _constant(func: Rule, name: str, args: Any, kwargs: Any) -> Constant | None:
    """What a linear step adds that does not depend on the input, and what kind of thing that is."""
    if name in CONVOLUTIONS or name == "linear":
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        if bias is None or not depends(args[0]):
            return None
        shape = (-1,) if name == "linear" else (-1, *(1,) * (args[0].ndim - 2))
        return (lambda: bias.view(shape)), name
    if name == "batch_norm":
        return (lambda: func(torch.zeros_like(args[0]), *args[1:], **kwargs)), "norm"
    if name not in SUMS and name not in ("baddbmm", "addmm", "addbmm"):
        return None
    leaves, spec = tree_flatten((args, kwargs))
    if all(depends(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()) and not any(
            isinstance(leaf, int | float) and not isinstance(leaf, bool) for leaf in leaves[:2]) and name not in (
            "pad", "_pad", "constant_pad_nd", "masked_fill"):
        return None
    if name in ("add_", "sub_", "__iadd__", "__isub__"):
        other, sign = args[1], -1.0 if "sub" in name else 1.0
        return None if depends(other) else ((lambda: other * (sign * kwargs.get("alpha", 1))), "constant")

    def asked() -> Any:
        zeroed = [torch.zeros_like(leaf) if depends(leaf) else leaf for leaf in leaves]
        again, more = tree_unflatten(zeroed, spec)
        return func(*again, **more)

    return asked, "constant"


def _own_statistics(args: Any, kwargs: Any) -> bool:
    training = args[5] if len(args) > 5 else kwargs.get("training", False)
    return bool(training) or args[1] is None


# --- attention ---
def _attention_arguments(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                         dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
                         enable_gqa: bool = False) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    return query, key, value, {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}


def _grouped(query: Tensor, value: Tensor, rest: dict[str, Any]) -> Tensor:
    return value.repeat_interleave(query.shape[-3] // value.shape[-3], -3) if rest["enable_gqa"] else value


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    """Step by step: the fused one has neither a forward-mode nor a second derivative."""
    query, key, value, rest = _attention_arguments(*args, **kwargs)
    return attend(query, key, **rest).to(value.dtype) @ _grouped(query, value, rest)
