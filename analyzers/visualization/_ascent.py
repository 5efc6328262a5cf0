"""Gradient ascent on the pictures of several units at once: one step for all, the network in forwards of a few."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from analyzers.visualization._objectives import Objective, Unit, alike
from analyzers.visualization._parameterisation import Maco, Parameterisation
from analyzers.visualization._penalties import PENALTIES
from analyzers.visualization._transforms import STACKS
from xai import seeds
from xai.errors import error
from xai.layers import Capture, LayerView
from xai.model import Model
from xai.rules import CLAMPS, RELUS, Rule, Rules

JOB = 16  # pictures that are optimised together
REDIRECTED = 16  # steps in which a ReLU that stops all of a picture's gradient lets some of it through (lucid)
FRAMES = 6
METHOD = "activation_maximization"


# --- a start that is dead ---
class _Redirect(torch.autograd.Function):
    """min(max(x, low), high), of which a picture's gradient, where all of it would stop, still pushes into the range.

    The gradient that comes is of what is maximised.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x <= low, x >= high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        below, above = ctx.saved_tensors
        plain = gradient.masked_fill(below | above, 0)
        pushed = gradient.masked_fill((below & (gradient < 0)) | (above & (gradient > 0)), 0)
        stopped = plain.flatten(1).abs().amax(1) == 0
        return torch.where(stopped.view(-1, *(1,) * (gradient.ndim - 1)), pushed, plain), None, None


class Redirected(Rules):
    """Every ReLU, ReLU6 and clamp at zero, whatever its spelling, with the gradient of `_Redirect`."""

    method = METHOD

    def __init__(self) -> None:
        super().__init__()
        self.answer(RELUS, self._relu)
        self.answer((*CLAMPS, Tensor.clamp_, torch.clamp_, Tensor.clamp_min_, torch.clamp_min_), self._clamp)

    def _relu(self, func: Rule, x: Tensor, inplace: bool = False) -> Tensor:
        value: Tensor = _Redirect.apply(x, 0.0, math.inf)  # type: ignore[no-untyped-call]  # torch's own gap
        return x.copy_(value) if inplace or func.__name__.endswith("_") else value

    def _clamp(self, func: Rule, x: Tensor, *limits: Any, inplace: bool = False, **kwargs: Any) -> Tensor:
        relu6 = func.__name__ == "relu6"
        low = 0.0 if relu6 else limits[0] if limits else kwargs.get("min", kwargs.get("min_val"))
        high = 6.0 if relu6 else limits[1] if len(limits) > 1 else kwargs.get("max", kwargs.get("max_val"))
        if not isinstance(low, int | float) or low != 0 or not isinstance(high, int | float | None):
            given = {**kwargs, **({"inplace": True} if inplace else {})}
            return func(x, *limits, **given)  # type: ignore[no-any-return]  # torch's own function
        top = math.inf if high is None else float(high)
        value: Tensor = _Redirect.apply(x, 0.0, top)  # type: ignore[no-untyped-call]  # torch's own gap
        return x.copy_(value) if inplace or func.__name__.endswith("_") else value


# --- the network ---
class Network:
    """A model that is asked about pictures (n, C, H, W) in [0, 1], one unit each, in forwards of `at_once`.

    diversity: how much a unit is charged for pictures that look alike to `layer`. Open only inside `with`.
    """

    def __init__(self, model: Model, units: Sequence[Unit], power: float, at_once: int, diversity: float = 0.0,
                 layer: LayerView | None = None) -> None:
        self.model, self.units, self.power = model, units, power
        self.diversity, self.layer = diversity, layer
        size = max(1, at_once)
        starts = range(0, len(units), size)
        self._chunks = [slice(a, min(a + size, len(units))) for a in starts]
        self._objectives = [Objective(units[rows], power, model.device) for rows in self._chunks]
        views = dict.fromkeys(view for one in self._objectives for view in one.views)
        if diversity and layer is not None:
            views[layer] = None
        self._views = list(views)
        black, white = (model.preprocessing.constant(level).to(model.device, model.dtype) for level in (0.0, 1.0))
        self._black, self._span = black, white - black
        self._module = model.runner(view.name for view in self._views)
        self._capture: Capture | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Network]:
        """With the layers recorded."""
        with Capture(self._module, self._views, cut=False) if self._views else contextlib.nullcontext() as capture:
            self._capture = capture
            yield self

    def inputs(self, pictures: Tensor) -> Tensor:
        """Pictures as the network takes them."""
        return self._black + pictures.to(self._black) * self._span

    def ask(self, pictures: Tensor) -> tuple[Tensor, Mapping[LayerView, Tensor]]:
        """What the head says of pictures, and what the layers held."""
        output = self.model.run(self.inputs(pictures), self._module)
        found = self._capture.values if self._capture is not None else {}
        missing = [view.name for view in self._views if view not in found]
        if missing:
            raise error("the layer", "one that runs in every forward", repr(missing[0]), "Name another")
        return output, found

    def look(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The units' values (n,) and what the head says (n, ...), without a gradient; float32 on the CPU."""
        values, outputs = [], []
        with torch.no_grad():
            for rows, objective in zip(self._chunks, self._objectives, strict=True):
                output, found = self.ask(pictures[rows])
                values.append(objective(output, found).float().cpu())
                outputs.append(output.float().cpu())
        return torch.cat(values), torch.cat(outputs)

    def each(self, pictures: Tensor) -> Tensor:
        """(n, units): what each picture is worth to every unit, without a gradient; float32 on the CPU."""
        with torch.no_grad():
            output, found = self.ask(pictures)
            count, device = len(pictures), self.model.device
            values = [Objective([unit] * count, self.power, device)(output, found) for unit in self.units]
        return torch.stack(values, 1).float().cpu()

    def climb(self, pictures: Tensor, redirect: bool) -> tuple[Tensor, Tensor]:
        """The units' values (n,), and the gradient (n, C, H, W) of those less the charge for likeness, at pictures."""
        values, gradients = [], []
        for rows, objective in zip(self._chunks, self._objectives, strict=True):
            leaf = pictures[rows].detach().requires_grad_()
            with Redirected() if redirect else contextlib.nullcontext():
                output, found = self.ask(leaf)
                value = objective(output, found)
            total = value.sum()
            if self.diversity and self.layer is not None:
                of = [self.units.index(unit) for unit in self.units[rows]]
                total = total - self.diversity * alike(self.layer.to_map(found[self.layer]).float(), of).sum()
            gradients.append(self._back(total, leaf))
            values.append(value.detach())
        return torch.cat(values), torch.cat(gradients)

    def _back(self, total: Tensor, leaf: Tensor) -> Tensor:
        if not total.requires_grad:
            raise error("the model", "differentiable for this method", "an output that no gradient reaches",
                        "Name another unit, or take another model")
        found: Tensor | None = self.model.told(
            lambda: torch.autograd.grad(total, leaf, allow_unused=True)[0], leaf)
        self.model.cost.add(backwards=len(leaf))
        if found is None:
            return torch.zeros_like(leaf)
        sound = found.sum((1, 2, 3)).isfinite()
        return found if sound.all() else torch.where(sound[:, None, None, None], found, torch.zeros_like(found))


# --- the ascent ---
@dataclass(frozen=True)
class Plan:
    """How pictures are optimised. stack: a key of `STACKS`; draws: transforms a step; noise: standard deviation;
    penalties: weights by the keys of `PENALTIES`."""

    how: Parameterisation
    steps: int
    stack: str
    draws: int
    rate: float
    noise: float = 0.0
    penalties: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Found:
    """What came of a job of n pictures, on the CPU.

    pictures (n, C, H, W) in [0, 1]; first: those of the start; frames: (step, pictures) on the way; course (steps, n):
    the objective, transforms and all; reach (n,): the largest norm of the gradient in steps without redirection;
    touched (n, H, W): of MACO the sum over the steps of the gradient's absolute value.
    """

    pictures: Tensor
    first: Tensor
    frames: list[tuple[int, Tensor]]
    course: Tensor
    reach: Tensor
    touched: Tensor

    @property
    def dead(self) -> list[bool]:
        """Units that gave one and the same value at every step, or that no gradient left."""
        still = (self.course.amax(0) == self.course.amin(0)) & (len(self.course) > 1)
        return [bool(v) for v in still | (self.reach == 0)]


@torch.enable_grad()
def ascend(network: Network, names: Sequence[str], plan: Plan, seed: int) -> Found:
    """Optimise one picture for each unit of the network. names: of the rows; a row's start and noise depend on the seed
    and its name alone, a step's transforms on the seed and the step's number."""
    device, how = network.model.device, plan.how
    own = [seeds.generator(seed, name, METHOD) for name in names]
    p = torch.stack([how.start(generator) for generator in own]).to(device).requires_grad_()
    kind = torch.optim.NAdam if isinstance(how, Maco) else torch.optim.Adam
    optimiser = kind([p], lr=plan.rate)
    first = how.picture(p).detach()
    redirected = min(REDIRECTED, plan.steps // 2)
    at = {max(1, round(plan.steps / 2**k)) for k in range(FRAMES)}
    frames, course = [], []
    reach, touched = torch.zeros(len(own), device=device), torch.zeros_like(first[:, 0])
    for step in range(1, plan.steps + 1):
        pictures = how.picture(p)
        leaf = pictures.detach().requires_grad_()
        value, norm = _one_step(network, leaf, plan, seed, step, own, step <= redirected)
        assert leaf.grad is not None
        if step > redirected:
            reach = torch.maximum(reach, norm)
        if isinstance(how, Maco):
            touched += leaf.grad.abs().mean(1)
        course.append(value.cpu())
        p.grad = None
        pictures.backward(leaf.grad)  # type: ignore[no-untyped-call]  # torch's own gap
        optimiser.step()
        with torch.no_grad():
            how.keep(p)
        if step in at:
            frames.append((step, how.picture(p).detach().cpu()))
    return Found(frames[-1][1], first.cpu(), frames, torch.stack(course), reach.cpu(), touched.cpu())


def _one_step(network: Network, leaf: Tensor, plan: Plan, seed: int, step: int, own: Sequence[torch.Generator],
              redirect: bool) -> tuple[Tensor, Tensor]:
    """Put the gradient of what is minimised into `leaf.grad`; the mean objective and the norm of its gradient, (n,)."""
    draws = seeds.generator(seed, f"step {step}", METHOD)
    values, size = [], min(leaf.shape[-2:])
    for _ in range(plan.draws):
        seen = STACKS[plan.stack](draws, size)(leaf)
        if plan.noise:
            noise = torch.stack([torch.randn(leaf.shape[1:], generator=generator) for generator in own])
            seen = seen + plan.noise * noise.to(leaf)
        value, gradient = network.climb(seen, redirect)
        seen.backward(-gradient / plan.draws)  # type: ignore[no-untyped-call]  # torch's own gap
        values.append(value.float())
    assert leaf.grad is not None
    norm = leaf.grad.flatten(1).norm(dim=1)
    charged = {name: weight for name, weight in plan.penalties.items() if weight}
    if charged:
        paid = torch.stack([weight * PENALTIES[name](leaf) for name, weight in charged.items()]).sum()
        paid.backward()  # type: ignore[no-untyped-call]  # torch's own gap
    return torch.stack(values).mean(0), norm


def enlarged(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, C, h, w) in [0, 1] resized, antialiased."""
    if pictures.shape[-2:] == torch.Size(size):
        return pictures
    return F.interpolate(pictures, size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
