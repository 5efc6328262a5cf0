"""LinearScope's operator: a network as the affine system y = F x + r that it is for one input."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from xai.errors import error
from xai.frozen import MODES, Frozen, Tape
from xai.model import Model
from xai.modules import kept
from xai.subject import as_model

COMPLETE = {torch.float32: 1e-5, torch.float64: 1e-12}  # of sum |F_i x_i| + sum |r terms|: rounding leaves no more
DENSE = 64  # outputs of which all rows are asked for their singular values
GRAM = 128  # rows at a time in double precision


@dataclass(frozen=True)
class Term:
    """What one layer's constants add to <u, y>: `layer` is the module, `kind` linear, conv2d, norm, constant or
    activation (the constant part of a curved function); `value` the sum, `size` the sum of absolute values, `map`
    (h, w) the sums over channels where the layer's output has places, else None."""

    layer: str
    kind: str
    value: float
    size: float
    map: Tensor | None = None


class Linear:
    """The affine system y = F x + r of one network at one input x (1, C, H, W): `xai.linearize` makes it.

    y (1, ...): the output there, what the head holds (logits, no softmax). mode: "gate" holds each gate g(x) of
    f(x) = x g(x), one factor of a product, attention and the scale of norms; r then holds only learned constants.
    "tangent" is the Jacobian; r then also holds the curvature. Both are the same for networks of ReLU, leaky ReLU and
    max-pooling. F speaks of the input as the network takes it (normalised). Navarrete Michelini et al. 2019,
    arXiv:1908.05168, section 3.
    """

    def __init__(self, model: Model, x: Tensor, mode: str = "gate") -> None:
        if mode not in MODES:
            raise error("the mode of a linear interpreter", f"one of {', '.join(MODES)}", repr(mode),
                        "gate is the default")
        if x.ndim != 4 or len(x) != 1:
            raise error("the input to be linearised", "one picture (1, C, H, W)", tuple(x.shape), "Take x[:1]")
        model.need("gradients")
        self.model, self.mode = model, mode
        self.x = x.detach().to(model.device, model.dtype)
        self.tape = Tape()
        assert model.head is not None  # asked for outside, so that asking is no part of the tape
        self._module = model.fast.module
        self._ear: Callable[[str, str, Tensor, Tensor], None] | None = None
        # A hook on a step of the graph holds what holds that step: no collector sees such a ring. So the hooks know
        # this object weakly, and go with it.
        self._hooks: list[Any] = []
        weakref.finalize(self, _removed, self._hooks)
        self._leaf, self._output = self._record()
        self.y: Tensor = self._output.detach()
        self._offset: Tensor | None = None

    def _record(self) -> tuple[Tensor, Tensor]:
        where, names = [""], {part: name for name, part in self._module.named_modules()}
        hooks, me = self._hooks, weakref.ref(self)

        def entered(part: nn.Module, args: Any) -> None:
            where.append(names.get(part, where[-1]))

        def left(part: nn.Module, args: Any, output: Any) -> None:
            where.pop()

        def told(made: Tensor, constant: Callable[[], Any], kind: str) -> None:
            if made.grad_fn is not None:  # of the step itself: what is done to a view in place takes its hooks away
                hooks.append(made.grad_fn.register_prehook(
                    partial(_hear, me, where[-1], kind, constant, made.output_nr)))

        leaf = self.x.clone().requires_grad_()
        with torch.inference_mode(False), torch.enable_grad(), kept(self._module):
            self._module.eval().requires_grad_(False)
            for part in self._module.modules():
                part.register_forward_pre_hook(entered)
                part.register_forward_hook(left)
            with Frozen(self.mode, "record", self.tape, told):
                output = self.model.run(leaf)
        if not output.requires_grad:
            raise error("the model", "differentiable for a linear interpreter", "an output that no gradient reaches",
                        "Use a method that needs only forwards: `xai methods list` names them")
        return leaf, output

    def _heard(self, layer: str, kind: str, constant: Callable[[], Any], number: int, found: Sequence[Any]) -> None:
        if self._ear is not None and found[number] is not None:
            with torch.no_grad():
                self._ear(layer, kind, torch.as_tensor(constant()).to(found[number]), found[number])

    # --- F ---
    def transpose(self, directions: Tensor, together: bool | None = None) -> Tensor:
        """F^T u: directions (k, *output), in the shape of y without its first axis -> (k, C, H, W). k backwards of the
        one forward that was recorded; together: in one batch (None: on an accelerator; on a CPU one after the other is
        as fast or faster, by up to a third, as no row shares anything with another), as far as every operation of the
        network has a batched backward."""
        u = directions.detach().to(self.y)
        if u.shape[1:] != self.y.shape[1:]:
            raise error("the directions", f"(k, {', '.join(map(str, self.y.shape[1:]))}), as the output has it",
                        tuple(u.shape), "Give one for each row of F that is wanted")
        back = partial(torch.autograd.grad, self._output, self._leaf, retain_graph=True)
        rows: Tensor | None = None
        if len(u) > 1 and (self.x.device.type != "cpu" if together is None else together):
            with contextlib.suppress(RuntimeError):  # also where memory is too little for all of them
                rows = back(u[:, None], is_grads_batched=True)[0][:, 0]
        if rows is None:
            rows = torch.cat([self.x[:0], *(self.model.told(partial(back, one[None]), self.x)[0] for one in u)])
        self.model.cost.add(backwards=len(u))
        return rows

    def forward(self, directions: Tensor) -> Tensor:
        """F v: directions (k, C, H, W) -> (k, *output). As F^T u is linear in u, F v is its way back from v: a backward
        that is recorded, and k passes back through it, each about as dear as two backwards."""
        v = directions.detach().to(self.x)
        if v.shape[1:] != self.x.shape[1:]:
            raise error("the directions", f"(k, {', '.join(map(str, self.x.shape[1:]))}), as the input is",
                        tuple(v.shape), "Give one for each column of F that is wanted")
        u = torch.zeros_like(self.y).requires_grad_()
        with torch.enable_grad():
            ask = partial(torch.autograd.grad, self._output, self._leaf, u, create_graph=True)
            (row,) = self.model.told(ask, self.x)
        self.model.cost.add(backwards=1)
        back = partial(torch.autograd.grad, row, u, retain_graph=True)
        if not len(v):
            return self.y[:0]
        return torch.cat([self.model.told(partial(back, one[None]), self.x)[0] for one in v])

    def _played(self, x: Tensor) -> Tensor:
        player = Frozen(self.mode, "affine", self.tape)
        with kept(self._module):
            self._module.eval()
            with player:
                output = self.model.run(x)
        if not player.done():
            raise error("the network", "one that takes the same way at every input", "another way than at the picture",
                        "Use integrated_gradients")
        return output

    def __call__(self, x: Tensor) -> Tensor:
        """G(x1) = F x1 + r for another input (1, C, H, W), replayed from what was held; one forward, no gradient."""
        with torch.no_grad():
            return self._played(x.to(self.x))

    # --- r ---
    @property
    def offset(self) -> Tensor:
        """r (1, *output) = G(0): replayed from what was held, without F; one forward, once."""
        if self._offset is None:
            self._offset = self(torch.zeros_like(self.x))
        return self._offset

    def terms(self, direction: Tensor) -> tuple[Tensor, tuple[Term, ...]]:
        """(F^T u (C, H, W), what each layer's constants add to <u, r>, in the order of execution); one backward.

        direction u (*output) or (1, *output). The terms add up to <u, r> where every constant of the network is known;
        what is missing belongs to none.
        """
        found: list[tuple[str, str, float, float, Tensor | None]] = []

        def ear(layer: str, kind: str, constant: Tensor, gradient: Tensor) -> None:
            # a pad of -inf before a max-pool that never picks it: nothing, where inf * 0 would be no number
            term = torch.where(gradient == 0, 0, constant * gradient).double()
            found.append((layer, kind, float(term.sum()), float(term.abs().sum()), _placed(term, self.x)))

        self._ear = ear
        try:
            row = self.transpose(direction.reshape(1, *self.y.shape[1:]))[0]
        finally:
            self._ear = None
        return row, tuple(Term(*one) for one in reversed(found))

    def gap(self, direction: Tensor) -> float:
        """|<u, y> - <F^T u, x> - <u, r>| relative to sum |F_i x_i| + sum |r terms|; one backward, and r once.

        Rounding leaves at most 1e-5 in float32 and 1e-12 in float64; more means that the network holds an operation
        that was not frozen.
        """
        row, terms = self.terms(direction)
        return self.gap_of(direction, row, terms)

    def gap_of(self, direction: Tensor, row: Tensor, terms: Sequence[Term]) -> float:
        """The same, of a row (C, H, W) and terms that were asked already."""
        u, votes = direction.reshape(-1).double().cpu(), (row * self.x[0]).double()
        said, offset = (float(value.reshape(-1).double().cpu() @ u) for value in (self.y, self.offset))
        size = float(votes.abs().sum()) + sum(term.size for term in terms)
        return abs(said - float(votes.sum()) - offset) / max(size, torch.finfo(torch.float64).tiny)

    # --- singular pairs ---
    def singular(self, count: int = 4, *, steps: int = 2, more: int = 4, seed: int = 0, dense: int = DENSE) -> Singular:
        """The leading singular pairs of F: exact from all rows where the output is flat and has at most `dense`
        numbers, else by randomised subspace iteration (Halko, Martinsson, Tropp 2011, arXiv:0909.4061, algorithm 4.4)
        with `more` vectors above `count` and `steps` rounds. Costs the output's size in backwards, and its rows are in
        memory at once; else steps + 1 times count + more backwards and as many products F v. Raises XaiError where F
        is not finite."""
        size, n = self.y[0].numel(), self.x.numel()
        if self.y.ndim == 2 and size <= dense:
            every = torch.eye(size, dtype=self.y.dtype, device=self.y.device)
            return self._pairs(*_decomposed(self.transpose(every).flatten(1), count), True)
        k = min(count + more, size, n)
        drawn = torch.randn(k, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(self.y)
        rows = _finite(self.transpose(drawn.view(k, *self.y.shape[1:])))
        energy = float(rows.square().sum() / k)  # E |F^T u|^2 = |F|_F^2 for u of unit variance
        for step in range(steps + 1):
            right = torch.linalg.qr(rows.T).Q.T
            images = self.forward(right.view(-1, *self.x.shape[1:])).flatten(1).double()
            if step < steps:
                left = torch.linalg.qr(images.T).Q.T
                rows = self.transpose(left.view(-1, *self.y.shape[1:])).flatten(1).double()
        left, values, mix = torch.linalg.svd(images.T, full_matrices=False)
        return self._pairs(left.T[:count], values[:count], (mix @ right)[:count], energy, False)

    def _pairs(self, left: Tensor, values: Tensor, right: Tensor, energy: float, exact: bool) -> Singular:
        return Singular(left.view(-1, *self.y.shape[1:]), values, right.view(-1, *self.x.shape[1:]), energy, exact)


@dataclass(frozen=True)
class Singular:
    """Singular pairs of F, the largest first: left (k, *output), values, right (k, C, H, W), of unit length; energy
    |F|_F^2 (estimated where not `exact`). values holds all of them where `exact`, else k."""

    left: Tensor
    values: Tensor
    right: Tensor
    energy: float
    exact: bool

    @property
    def stable_rank(self) -> float:
        """|F|_F^2 / s_1^2: how many directions of the first one's strength F has at the least."""
        return self.energy / max(float(self.values[0]) ** 2, torch.finfo(torch.float64).tiny)


def linearize(model: Any, x: Any, mode: str = "gate", **options: Any) -> Linear:
    """The network as the affine system y = F x + r that it is for one input.

    model: a spec, a torch module (eval mode is taken, nothing of it is changed) or an xai.Model. x: the input as the
    network takes it, (C, H, W) or (1, C, H, W), normalised; or a picture (path, array (h, w, 3) uint8, ...), which the
    model's own preprocessing prepares. mode: "gate" or "tangent", see `Linear`. options: those of `xai.load` for a
    spec. Raises XaiError for bad input and where the network cannot be differentiated.
    """
    from xai.images import load_images

    if isinstance(model, torch.nn.Module) and isinstance(x, Tensor) and x.ndim > 2:
        model = Model(model, size=(int(x.shape[-2]), int(x.shape[-1])), channels=int(x.shape[-3]))
    made = as_model(model, **options)
    if not isinstance(x, Tensor):
        x = next(iter(made.prepare(load_images(x)))).inputs[:1]
    return Linear(made, x[None] if x.ndim == 3 else x, mode)


def _hear(me: weakref.ref[Linear], layer: str, kind: str, constant: Callable[[], Any], number: int,
          found: Sequence[Any]) -> None:
    linear = me()
    if linear is not None:
        linear._heard(layer, kind, constant, number, found)


def _removed(hooks: list[Any]) -> None:
    for hook in hooks:
        hook.remove()
    hooks.clear()


def _decomposed(rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """The first left and right singular vectors of rows (m, N), all min(m, N) values, and the sum of their squares.

    Many rows have their values from the m x m matrix of their products, made in double precision a few rows at a time,
    since the rows themselves would fill memory in it; values below 1e-8 of the largest are then rounding.
    """
    if len(rows) <= DENSE:
        left, values, right = torch.linalg.svd(_finite(rows), full_matrices=False)
        return left.T[:count], values, right[:count], float(values.square().sum())
    blocks = torch.split(rows, GRAM)
    products = torch.cat([torch.cat([_finite(one) @ _finite(other).T for other in blocks], 1) for one in blocks])
    squares, left = torch.linalg.eigh(products)
    squares, left = squares.flip(0).clamp(min=0)[: rows.shape[1]], left.flip(1).T[:count]
    values = squares.sqrt()
    first = values[:count].clamp(min=torch.finfo(torch.float64).tiny)
    right = sum((left[:, at : at + GRAM] @ rows[at : at + GRAM].double() for at in range(0, len(rows), GRAM)),
                start=rows.new_zeros((), dtype=torch.float64))
    return left, values, right / first[:, None], float(squares.sum())


def _finite(rows: Tensor) -> Tensor:
    """(k, N), float64."""
    if not rows.isfinite().all():
        raise error("the rows of F", "finite for singular values", "some that are not", "Check weights and input")
    return rows.flatten(1).double()


def _placed(term: Tensor, like: Tensor) -> Tensor | None:
    """(h, w): the sums over channels of a term that has places as the input `like` has them, whichever axis is last."""
    if term.ndim != 4 or len(term) != 1:
        return None
    aspect = like.shape[-2] / like.shape[-1]
    for places, channels in (((2, 3), 1), ((1, 2), 3)):
        h, w = (term.shape[axis] for axis in places)
        if h * w > 1 and max(h, round(w * aspect)) - min(h, round(w * aspect)) <= 1:
            return term.sum(channels)[0]
    return None
