"""Who looks at whom: the attention probabilities of every self-attention of a vision transformer, fused or not."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xai.batch import Batch
from xai.errors import error
from xai.layers import LayerView
from xai.model import Model
from xai.modules import kept
from xai.resolver import list_layers
from xai.rules import MULTI_HEAD
from xai.targets import Bound
from xai.trace import redrawn

SOFTMAXES = frozenset({torch.softmax, torch.Tensor.softmax, F.softmax, torch.special.softmax})
ROOM = 1 << 28  # bytes of attention matrices that may stand in memory at once
WANTED = "a transformer whose every self-attention runs over all patches of the picture, as this method needs"
INSTEAD = "Use gradcam, or another method that reads no attention (`xai methods list`)"


def attend(query: Tensor, key: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False,
           scale: float | None = None, enable_gqa: bool = False) -> Tensor:
    """The probabilities (..., L, S) inside `scaled_dot_product_attention`: softmax(scale * q k^T + mask).

    query (..., L, E), key (..., S, E); a boolean mask is True where attention may go; a row that may go nowhere is all
    zero, as torch has it. Half precision comes back in float32.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * factor) @ key.mT
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        return _full(scores).softmax(-1)
    if attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    else:
        scores = scores + attn_mask
    nowhere = scores.isneginf().all(-1, keepdim=True)
    return _full(scores).softmax(-1).masked_fill(nowhere, 0)


def _full(values: Tensor) -> Tensor:
    """At least float32."""
    return values.float() if values.element_size() < 4 else values


class Watch(TorchFunctionMode):
    """Records the probabilities of every self-attention while networks run: `with Watch(n) as w: net(x); w.found`.

    `found`: in the order of execution, (n, heads, T, T) each, or what `keep` makes of it. Seen are
    `scaled_dot_product_attention` (computed step by step meanwhile: the result is the fused one's within rounding, and
    dropout is left out), a softmax over the last axis of a square (n, heads, T, T), (n * heads, T, T) or (n, T, T), and
    torch's MultiheadAttention, whose fused path an active mode switches off. graph: the probabilities stand in the
    graph, as leaves where nothing before them requires grad. `others`: shapes of square softmaxes that are not one a
    picture (windows, say). `folded`: a softmax held pictures and heads in one axis, whose order nothing tells.
    """

    def __init__(self, pictures: int, graph: bool = False,
                 keep: Callable[[Tensor], Tensor] = lambda found: found) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        self.others: list[tuple[int, ...]] = []
        self.folded = False
        self._pictures, self._graph, self._keep = pictures, graph, keep
        self._inside: int | None = None  # pictures in the multi-head attention that is running

    def __torch_function__(self, func: Any, kinds: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Called by torch instead of every function of its own."""
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._multi_head(args, kwargs)
        if func is F.scaled_dot_product_attention:
            return self._scaled(func, *args, **kwargs)
        result = func(*args, **kwargs)
        if func in SOFTMAXES and _over_last(result, *args[1:2], **kwargs):
            if result.shape[-1] == result.shape[-2]:
                return self._record(result)
            if result.ndim == 4:  # of few tokens in place of all of them, say
                self.others.append(tuple(result.shape))
        return result

    def _multi_head(self, args: Sequence[Any], kwargs: Any) -> Any:
        query = args[0] if args else kwargs["query"]
        self._inside = query.shape[1] if query.ndim == 3 else 1
        try:
            with self:
                return MULTI_HEAD(*args, **kwargs)
        finally:
            self._inside = None

    def _scaled(self, func: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
                enable_gqa: bool = False) -> Any:
        if query.shape[-2] != key.shape[-2] or query.ndim < 3:  # tokens that look at others than themselves
            if query.ndim > 2:
                self.others.append((*query.shape[:-1], key.shape[-2]))
            return func(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
        found = self._record(attend(query, key, attn_mask, is_causal, scale, enable_gqa))
        if enable_gqa:
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        return found.to(value.dtype) @ value

    def _record(self, found: Tensor) -> Tensor:
        """Note the probabilities, and give what the network goes on with."""
        shape, n = found.shape, self._pictures
        lead = self._inside if self._inside is not None and found.ndim == 3 else n
        if found.ndim > 4 or lead != n or shape[0] % n or (found.ndim == 4 and shape[0] != n):
            self.others.append(tuple(shape))
            return found
        self.folded = self.folded or (found.ndim == 3 and shape[0] > n and self._inside is None)
        found = found.reshape(n, -1, *shape[-2:])
        if self._graph and not found.requires_grad:
            found = found.detach().requires_grad_()
        self.found.append(self._keep(found))
        return found.reshape(shape)


def _over_last(result: Any, dim: int | None = None, **more: Any) -> bool:
    """Whether a softmax was one over the rows of matrices."""
    if not isinstance(result, Tensor) or result.ndim < 3:
        return False
    axis = more.get("dim", dim)
    return axis in (-1, result.ndim - 1) and result.shape[-1] > 1


@dataclass(frozen=True)
class Tokens:
    """The self-attention of a network, for inputs of one shape.

    `heads`: their number in each layer; `count` tokens, `prefix` of them before the patches of the `grid`, row by row.
    `read`: the tokens from which the head draws its answer, by the gradient at the last attention: the class token, the
    patches where these are pooled, or both. `folded`: see `Watch`.
    """

    heads: tuple[int, ...]
    count: int
    prefix: int
    grid: tuple[int, int]
    read: tuple[int, ...]
    folded: bool = False

    def start(self, like: Tensor) -> Tensor:
        """(n, count), for n as in `like` (n, ...), in at least float32: equal weight on each token before the patches
        that is read, and on the mean of the patches where they are."""
        row = torch.zeros(self.count, dtype=like.dtype, device=like.device)
        pooled = [t for t in self.read if t >= self.prefix]
        row[[t for t in self.read if t < self.prefix]] = 1.0
        if pooled:
            row[pooled] = 1 / len(pooled)
        return (row / row.sum()).expand(len(like), -1)

    def on_grid(self, row: Tensor) -> Tensor:
        """(n, h, w): what a row (n, count) gives to the patches."""
        return row[:, self.prefix :].reshape(len(row), *self.grid)

    def parts(self, batch: Batch, copies: int) -> Iterator[slice]:
        """The pictures of the batch, as many at once as `copies` of all layers' probabilities of them find room."""
        each = copies * sum(self.heads) * self.count**2 * max(4, batch.inputs.element_size())
        step = 1 if self.folded else max(1, ROOM // each)
        for first in range(0, len(batch), step):
            yield slice(first, min(first + step, len(batch)))


@dataclass
class _Known:
    """What was found out about one model, by the shape of its inputs."""

    by_shape: dict[tuple[int, ...], Tokens] = field(default_factory=dict)


_KNOWN: weakref.WeakKeyDictionary[Model, _Known] = weakref.WeakKeyDictionary()


@torch.inference_mode(False)  # what is built in the caller's would never take part in a gradient
def self_attention(model: Model, example: Tensor | None = None) -> Tokens:
    """How the tokens of a model lie on the picture, for inputs of the example's shape: asked once, in one forward and
    one backward of the first of them that no count knows.

    Raises XaiError where its attention cannot be laid over a picture: a network without any, one whose attention runs
    in windows or at several resolutions, or one whose tokens are no grid of patches.
    """
    model.need("hooks")
    example = (model.example() if example is None else example)[:1]
    known = _KNOWN.setdefault(model, _Known()).by_shape
    key = tuple(example.shape[1:])
    if key not in known:
        known[key] = _asked(model, example)
    return known[key]


def _asked(model: Model, example: Tensor) -> Tokens:
    module = model.fast.module
    with kept(module):
        module.eval()
        watch, slope = _slope(model, module, example)
        if slope is None or not slope.any():  # a classifier that was born zero lets no gradient in
            with redrawn(module) as names:
                slope = _slope(model, module, example)[1] if names else slope
        if not watch.found and not watch.others:
            raise error("the model", WANTED, f"{model.spec}, in which no self-attention is seen", INSTEAD)
        shapes = {tuple(found.shape[-2:]) for found in watch.found}
        if watch.others or len(shapes) > 1:
            said = sorted({*(tuple(found.shape) for found in watch.found), *watch.others})
            raise error("the model", WANTED, f"{model.spec}, whose attention runs in windows, at several resolutions "
                        f"or over other tokens than the patches (shapes {', '.join(map(str, said[:4]))})", INSTEAD)
        count = int(watch.found[0].shape[-1])
        view = _laid_out(model, module, example, count)
    rows = [] if slope is None else (slope != 0).any(3).any(1)[0].nonzero().flatten().tolist()
    patches = list(range(view.prefix, count))
    read = [row for row in rows if row < view.prefix] + (patches if any(row >= view.prefix for row in rows) else [])
    if not read:
        read = [0] if view.prefix else patches
    heads = tuple(int(found.shape[1]) for found in watch.found)
    return Tokens(heads, count, view.prefix, view.grid, tuple(read), watch.folded)


def _slope(model: Model, module: Any, example: Tensor) -> tuple[Watch, Tensor | None]:
    """What is seen in one forward, and the gradient of a mixture of all outputs at the last attention, NaN as it is."""
    watch = Watch(1, graph=True)
    with torch.enable_grad(), watch:
        output = model.told(lambda: module(example), example)
    value = model.head.read(output)
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
    if not watch.found or not value.requires_grad:
        return watch, None
    score = (value * weights).sum()
    (slope,) = model.told(lambda: torch.autograd.grad(score, watch.found[-1], allow_unused=True), example)
    return watch, slope


def _laid_out(model: Model, module: Any, example: Tensor, count: int) -> LayerView:
    """The layer that says where so many tokens lie."""
    auto = model.view("auto", example)
    fits: Callable[[LayerView], bool] = lambda view: (view.layout != "nchw"  # noqa: E731
                                                      and view.prefix + view.grid[0] * view.grid[1] == count)
    if fits(auto):
        return auto
    views: list[LayerView] = [view for view in model.told(lambda: list_layers(module, example), example) if fits(view)]
    if not views:
        raise error("the model", WANTED, f"{model.spec}, whose {count} tokens lie on no grid that is known (the layer "
                    f"{auto.name!r} has {auto.grid[0]}x{auto.grid[1]} places)",
                    f"Give the grid, as in SPEC?grid=14x14, or {INSTEAD[0].lower()}{INSTEAD[1:]}")
    return views[-1]


def recorded(batch: Batch, part: slice, keep: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What `keep` makes of the probabilities (m, heads, T, T) of every layer, the first one first, for some pictures of
    a batch; m forwards."""
    inputs = batch.inputs[part]
    tokens = self_attention(batch.model, batch.inputs)
    watch = Watch(len(inputs), keep=lambda found: keep(_full(found)))
    with torch.no_grad(), watch:
        batch.model.run(inputs)
    _as_expected(batch.model, watch, tokens)
    return watch.found


def with_gradients(batch: Batch, part: slice, bound: Bound) -> list[tuple[Tensor, Tensor]]:
    """(A, dS/dA), (m, heads, T, T) each, of every layer, the first one first; m forwards and backwards.

    bound speaks of the m pictures. A layer that the gradient does not reach has zeros; raises XaiError where it reaches
    none.
    """
    model, inputs = batch.model, batch.inputs[part]
    model.need("gradients")
    tokens = self_attention(model, batch.inputs)
    watch = Watch(len(inputs), graph=True)
    with torch.enable_grad():
        with watch:
            output = model.run(inputs)
        _as_expected(model, watch, tokens)
        score = bound(output)
        slopes: Sequence[Tensor | None] = [None] * len(watch.found)
        if score.requires_grad:
            slopes = model.told(lambda: torch.autograd.grad(score.sum(), watch.found, allow_unused=True), inputs)
    model.cost.add(backwards=len(inputs))
    if all(slope is None for slope in slopes):
        raise error("the model", "differentiable for this method", "an output that its attention has no part in",
                    "Use attention_rollout, or a method that needs only forwards (`xai methods list`)")
    return [(_full(found.detach()), torch.zeros_like(_full(found)) if slope is None else _full(slope))
            for found, slope in zip(watch.found, slopes, strict=True)]


def _as_expected(model: Model, watch: Watch, tokens: Tokens) -> None:
    """Raise where the pictures were attended to in another way than the example."""
    same = len(watch.found) == len(tokens.heads) and all(found.shape[-1] == tokens.count for found in watch.found)
    if watch.others or not same:
        raise error(f"the attention of {model.spec}", f"in {len(tokens.heads)} layers for every picture",
                    f"{len(watch.found)} for one", INSTEAD)
