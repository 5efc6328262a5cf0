"""DeconvNet: what in a picture drove a unit, drawn back to the pixels; and the pictures that drive it most."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from analyzers.visualization._field import ROWS, Fields
from analyzers.visualization._tiles import drawn_tile, tiles
from analyzers.visualization._until import until
from xai.analyzer import Passes, param
from xai.batch import Batch
from xai.errors import XaiError, error
from xai.layers import LayerView
from xai.model import Model
from xai.panels import AnyPanel, Axis, Column, Heatmap, Mark, Picture, Table, Text
from xai.randomized import randomized, shares_of, stages
from xai.result import Cost
from xai.rules import CLAMPS, RELUS, THROUGH_ZERO, Rule, Rules
from xai.statistics import spearman
from xai.streaming import Block, State, Streaming
from xai.subject import Subject

ALIKE = 0.8  # rank correlation from which two projections are called the same
FOUND = ("value", "picture", "y", "x")
SMOOTH: tuple[Rule, ...] = (*THROUGH_ZERO, F.leaky_relu, F.leaky_relu_, F.prelu, torch.prelu)


class _Rectify(torch.autograd.Function):
    """A value whose gradient is rectified on its way to the argument, wherever that was negative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.clamp(min=0), None


class Rectified(Rules):
    """Meanwhile the gradient of every rectifier, whatever its spelling, is the rectified gradient of what it gave.

    Counts of ReLUs (ReLU6 and clamps at zero among them) and of other activations, for which the rule is an extension.
    """

    method, instead = "deconvnet", "inversion"

    def __init__(self) -> None:
        super().__init__()
        self.answer(RELUS, self._relu)
        self.answer(CLAMPS, self._clamp)
        self.answer(SMOOTH, self._smooth)
        self.count = self.others = 0

    def _relu(self, func: Rule, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.count += 1
        return self._rectified(func, x, *args, **kwargs)

    def _clamp(self, func: Rule, x: Tensor, *limits: Any, **kwargs: Any) -> Any:
        low = limits[0] if limits else kwargs.get("min", kwargs.get("min_val"))
        is_relu = func.__name__ == "relu6" or (isinstance(low, int | float) and low == 0)
        return self._relu(func, x, *limits, **kwargs) if is_relu else func(x, *limits, **kwargs)

    def _smooth(self, func: Rule, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.others += 1
        return self._rectified(func, x, *args, **kwargs)

    def _rectified(self, func: Rule, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            value = func(x.detach().clone(), *args, **kwargs)
        in_place = kwargs.get("inplace") or func.__name__.endswith("_") or any(a is True for a in args)
        made: Tensor = _Rectify.apply(x.clone() if in_place else x, value)  # type: ignore[no-untyped-call]  # torch's gap
        return x.copy_(made) if in_place else made


@dataclass(frozen=True)
class DeconvNet(Streaming):
    """DeconvNet: what in a picture drove a unit of a layer, drawn back to its pixels.

    Of a layer's values one is kept, the strongest of its channel, and goes down again: through max-pools to where the
    maximum was found on the way up (the switches), through each ReLU as max(R, 0) of the signal R that arrives, through
    each convolution by its own filters transposed, without its bias. That is the gradient but for the ReLUs, and is
    computed as such; where windows of a pool overlap, signals add. For each unit the pictures of a data set that drive
    it most are shown, of each its strongest place, cut to what the unit reads of it.

    The projections of most networks hardly depend on the unit: they draw again what lies there. Each is compared with
    that of another unit at the same place, and with those of networks whose lower layers were drawn anew, from the
    layer down. Not as in the paper: norms pass their gradient, and other activations than ReLU rectify the signal too.

    Reads     one model, images
    Yields    for each unit its strongest patches and their projections, in the units of the normalised input; how alike
              projections of other units and other weights are (rank correlation)
    Raises    XaiError if no unit of the layer is active on any picture, a unit is no channel of the layer, or the
              network is TorchScript, into which no rule reaches
    Cost      a forward a picture; for each patch a forward and two backwards; for each unit and cascade step a forward
              and a backward, and five forwards. All but the first end at the layer. About 0.8 MB a patch are kept at
              224 x 224
    Reference Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901,
              section 2.1; the forms of the ReLU: Springenberg et al. 2015, arXiv:1412.6806, figure 1
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradients", "hooks", "images"})
    shares: ClassVar[bool] = True  # no target is read
    upper: ClassVar[bool] = True  # a unit may be active on fewer pictures
    stages: ClassVar[int] = 2

    layer: str = param("auto", "layer whose units are looked at; auto: asked of the network")
    units: str = param("auto", "channel numbers, separated by commas; auto: those with the largest values of all")
    count: int = param(4, "how many units auto takes", low=1)
    patches: int = param(9, "pictures shown of each unit", low=1)
    cascade: int = param(3, "networks with ever more layers drawn anew, from the layer down; 0: none", low=0)

    def passes(self, model: Model) -> Passes:
        """Of one picture: the common forward, which finds the strongest places."""
        return Passes()

    def cost(self, subject: Subject) -> Cost:
        """The most that it takes: every unit active on as many pictures as are shown."""
        pictures = len(subject.images or ())
        units = self.count if self.units == "auto" else len(self._named())
        patches, anew = units * min(self.patches, pictures), units * self.cascade
        return Cost(forwards=pictures + patches + anew + ROWS + 1, backwards=2 * patches + anew)

    def _named(self) -> list[str]:
        return list(dict.fromkeys(unit.strip() for unit in self.units.split(",") if unit.strip()))

    def start(self, subject: Subject) -> State:
        """No picture yet: of each channel the largest values, and where they are."""
        model = subject.one_model()
        with model.opened() as module:
            if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
                raise error("the network", "one whose functions can be seen for deconvnet",
                            f"{model.spec}, which is TorchScript", "Give the network's own code and weights")
        shape = (model.view(self.layer).channels, self.patches)
        return {"value": np.full(shape, -np.inf), "picture": np.full(shape, -1), "y": np.zeros(shape, int),
                "x": np.zeros(shape, int), "seen": np.zeros(self.stages, int)}

    def update(self, state: State, block: Block, stage: int) -> None:
        """First the strongest places of each channel; then the projections of those that are shown."""
        for batch in block.batches[0]:
            first = int(state["seen"][stage])
            (self._find if stage == 0 else self._project)(state, batch, first)
            state["seen"][stage] += len(batch)

    def _find(self, state: State, batch: Batch, first: int) -> None:
        view, size = batch.model.view(self.layer), batch.model.preprocessing.size
        if batch.inputs.shape[2:] != size:
            raise error("the pictures", f"of {size[0]} x {size[1]} for deconvnet", tuple(batch.inputs.shape[2:]),
                        "Give pictures that are not normalised yet, or set ?size= on the spec")
        with torch.no_grad():
            maps = until(batch.model, view, batch.inputs).float()
        maps = torch.where(maps.isfinite().flatten(1).all(1)[:, None, None, None], maps, -math.inf)
        best, place = (t.T.cpu().numpy() for t in maps.flatten(2).max(2))
        index = np.broadcast_to(first + np.arange(len(batch)), best.shape)
        more = dict(zip(FOUND, (best.astype(float), index, *divmod(place, maps.shape[3])), strict=True))
        _keep(state, {key: np.concatenate([state[key], more[key]], axis=1) for key in FOUND}, self.patches)

    def merge(self, states: Sequence[State]) -> State:
        """The strongest of several parts of a data set, each of whose pictures are counted on from the last."""
        made = {key: value.copy() for key, value in states[0].items()}
        for other in states[1:]:
            moved = {**other, "picture": np.where(other["picture"] < 0, -1, other["picture"] + made["seen"][0])}
            _keep(made, {key: np.concatenate([made[key], moved[key]], axis=1) for key in FOUND}, self.patches)
            made["seen"] = made["seen"] + other["seen"]
        return made

    def _chosen(self, state: State) -> list[int]:
        """The units that are shown. Raises XaiError where none is active, or one is no channel."""
        top, channels = state["value"][:, 0], len(state["value"])
        if self.units == "auto":
            order = np.argsort(-top, kind="stable")[: self.count]
            found = [int(unit) for unit in order if top[unit] > 0]
        else:
            wrong = [u for u in self._named() if not u.isdecimal() or int(u) >= channels]
            if wrong or not self._named():
                raise error("deconvnet.units", f"channels of the layer, 0 to {channels - 1}, or auto",
                            repr(wrong[0] if wrong else self.units), "See `xai models info` for the layers")
            found = [int(unit) for unit in self._named() if top[int(unit)] > 0]
        if not found:
            raise error("the layer", "one with an active unit", f"{self.layer!r}, whose units are zero, negative or "
                        "not finite on all pictures", "Name another with --layer, or other units")
        return found

    def _project(self, state: State, batch: Batch, first: int) -> None:
        """Draw what this batch has of the strongest patches."""
        units, (channels, height, width) = self._chosen(state), batch.inputs.shape[1:]
        shape = (len(units), self.patches)
        if "drawn" not in state:
            state |= {"drawn": np.zeros((*shape, channels, height, width), np.float32),
                      "input": np.zeros((len(units), channels, height, width), np.float32),
                      "shown": np.zeros((*shape, height, width, 3), np.uint8), "alike": np.full(shape, np.nan),
                      "name": np.full(shape, "", "U200"), "hash": np.full(shape, "", "U80"), "relus": np.zeros(2, int)}
        todo = [(u, k) for u, unit in enumerate(units) for k in range(self.patches)
                if 0 <= state["picture"][unit, k] - first < len(batch) and state["value"][unit, k] > 0]
        size = max(1, batch.chunk)
        for start in range(0, len(todo), size):
            part = todo[start : start + size]
            at = [(units[u], k) for u, k in part]
            rows = [int(state["picture"][one]) - first for one in at]
            places = [(unit, int(state["y"][unit, k]), int(state["x"][unit, k])) for unit, k in at]
            drawn, other, state["relus"] = project(batch.model, self.layer, batch.inputs[rows], places)
            for n, ((u, k), row) in enumerate(zip(part, rows, strict=True)):
                state["drawn"][u, k], state["shown"][u, k] = drawn[n].cpu().numpy(), batch.seen[row]
                state["name"][u, k], state["hash"][u, k] = batch.images[row].name, batch.hashes[row]
                if other is not None:
                    state["alike"][u, k] = _alike(drawn[n], other[n])
                if k == 0:
                    state["input"][u] = batch.inputs[row].float().cpu().numpy()

    def panels(self, subject: Subject, state: State) -> Iterator[AnyPanel]:
        """What it shows and does not show first, then each unit."""
        model, units = subject.one_model(), self._chosen(state)
        view = model.view(self.layer)
        fields = Fields(model, view)
        anew, why = self._anew(subject, view, state, units)
        yield _caution(state, view, fields, anew)
        if why:
            yield Text(key="not_randomised", title="Layers drawn anew", text=why, tone="warning")
        yield _table(state, units, anew)
        for u, unit in enumerate(units):
            yield from _unit(state, u, unit, fields)

    def _anew(self, subject: Subject, view: LayerView, state: State, units: list[int]
              ) -> tuple[dict[str, list[float]], str]:
        """How alike the first projections are to those of networks with layers drawn anew: by what was drawn, one value
        a unit; and why there are none."""
        model = subject.one_model()
        if not self.cascade:
            return {}, ""
        x = torch.from_numpy(state["input"]).to(model.device, model.dtype)
        places = [(unit, int(state["y"][unit, 0]), int(state["x"][unit, 0])) for unit in units]
        below, found = _below(model, view, x[:1]), dict[str, list[float]]()
        if not below:
            return {}, "No layer with weights lies below this one: there is nothing to draw anew."
        try:
            for names in shares_of(below, self.cascade):
                twin = randomized(model, names, subject.seed)
                drawn = project(twin, self.layer, x, places, alone=True)[0]
                found[f"{len(names)} of {len(below)} layers drawn anew"] = [
                    _alike(torch.from_numpy(state["drawn"][u, 0]), drawn[u].cpu()) for u in range(len(units))]
        except XaiError as problem:
            if "copied" not in str(problem):
                raise
            return {}, f"No network with layers drawn anew is compared: {problem}"
        return found, ""


def project(model: Model, layer: str, x: Tensor, places: Sequence[tuple[int, int, int]], alone: bool = False
            ) -> tuple[Tensor, Tensor | None, np.ndarray]:
    """The projections (m, C, H, W) of units (channel, y, x), one for each of the inputs x (m, C, H, W): signal in, the
    unit's own value (1 for `alone`); those of the strongest other unit at the same place; counts of ReLUs and of other
    activations below the layer. m forwards, and m backwards for each of the two (no other for `alone`)."""
    view = model.view(layer)
    rows, (cs, ys, xs) = torch.arange(len(x)), (torch.tensor(v) for v in zip(*places, strict=True))
    with model.opened() as module, torch.enable_grad(), Rectified() as rules:
        leaf = x.detach().clone().requires_grad_()
        maps = until(model, view, leaf.clone(), module)

    def back(channels: Tensor, last: bool) -> Tensor:
        signal = torch.zeros_like(maps)
        signal[rows, channels, ys, xs] = 1.0 if alone else maps.detach()[rows, channels, ys, xs]
        (found,) = model.told(lambda: torch.autograd.grad(maps, leaf, signal, retain_graph=not last), leaf)
        model.cost.add(backwards=len(x))
        made: Tensor = found.float()
        return made

    several = not alone and maps.shape[1] > 1
    own = back(cs, not several)
    other = None
    if several:
        rest = maps.detach()[rows, :, ys, xs].clone()
        rest[rows, cs] = -math.inf
        other = back(rest.argmax(1), True)
    return own, other, np.array([rules.count, rules.others])


def _keep(state: State, both: State, most: int) -> None:
    """Of each channel's candidates the largest values, of equal ones the first picture."""
    order = np.lexsort((both["picture"], -both["value"]), axis=1)[:, :most]
    for key, values in both.items():
        state[key] = np.take_along_axis(values, order, axis=1)


def _below(model: Model, view: LayerView, x: Tensor) -> tuple[str, ...]:
    """The stages of a network that run before the layer has its value, the nearest to it first. One forward."""
    entered = set[str]()
    with model.opened() as module, torch.no_grad():
        for name, part in module.named_modules():
            part.register_forward_pre_hook(lambda part, args, name=name: entered.add(name))
        until(model, view, x, module)
    return tuple(name for name in stages(model) if name in entered)


def _alike(one: Tensor, two: Tensor) -> float:
    """Rank correlation of the sizes of two projections (C, H, W), each pixel's largest over colours, where one of them
    is not zero."""
    a, b = one.abs().amax(0).flatten(), two.abs().amax(0).flatten()
    there = (a > 0) | (b > 0)
    return spearman(a[there], b[there]) if bool(there.any()) else math.nan


# --- what is shown ---
def _caution(state: State, view: LayerView, fields: Fields, anew: dict[str, list[float]]) -> Text:
    known = state["alike"][np.isfinite(state["alike"])]
    relus, others = (int(v) for v in state["relus"])
    said = [f"Units of layer {view.name}, {relus} ReLUs below it."]
    if others:
        said.append(f"{others} other activations rectify the signal too, which is an extension of the method.")
    if not relus + others:
        said.append("Without a rectifier the projection is the gradient times the unit's value.")
    if not fields.known:
        said.append("What its units read is not known here: patches are whole pictures.")
    if len(known):
        hardly = known.mean() > ALIKE
        said.append(f"A projection {'hardly depends' if hardly else 'depends in part'} on its unit: the "
                    "rank correlation with that of the strongest other unit at the same place is "
                    f"{known.mean():.2f} in the mean of {len(known)} (least {known.min():.2f}, largest "
                    f"{known.max():.2f}). Read it as a sketch of what the unit can see there, not as evidence of what "
                    "it looks for; the pictures that drive it, side by side, say more.")
    if anew and (last := [v for v in list(anew.values())[-1] if math.isfinite(v)]):
        said.append(f"With that of the network with {list(anew)[-1]} it is {sum(last) / len(last):.2f}.")
    return Text(key="caution", title="What a projection says", text=" ".join(said), tone="warning")


def _table(state: State, units: list[int], anew: dict[str, list[float]]) -> Table:
    rows = []
    for u, unit in enumerate(units):
        values = state["value"][unit][state["value"][unit] > 0]
        alike = state["alike"][u][np.isfinite(state["alike"][u])]
        rows.append((unit, str(state["name"][u, 0]), float(values[0]), float(values[-1]), len(values),
                     float(alike.mean()) if len(alike) else None,
                     *(v[u] if math.isfinite(v[u]) else None for v in anew.values())))
    columns = ("unit", "strongest picture", "its value", "value of the last patch", "patches",
               "like another unit's", *(f"like that with {name}" for name in anew))
    return Table(key="units", title="Units and what their projections depend on", rows=tuple(rows),
                 columns=tuple(map(Column, columns)), note="Alike: Spearman's rank correlation of sizes over pixels; 1 "
                 "is the same drawing.")


def _unit(state: State, u: int, unit: int, fields: Fields) -> Iterator[AnyPanel]:
    patches, drawings, names = [], [], []
    for k in range(len(state["value"][unit])):
        if state["value"][unit, k] <= 0:
            break
        top, left, bottom, right = fields.at(unit, int(state["y"][unit, k]), int(state["x"][unit, k]))
        patches.append(state["shown"][u, k, top:bottom, left:right])
        drawings.append(drawn_tile(state["drawn"][u, k, :, top:bottom, left:right]))
        names.append(f"{state['name'][u, k]} ({state['value'][unit, k]:.3g})")
        if k == 0:
            box = Mark("box", ((left, top), (right, bottom)), "what the unit reads")
    said = f"In order, row by row: {', '.join(names)}."
    yield Picture(key=f"patches {unit}", title=f"Unit {unit}: strongest patches", pixels=tiles(patches), note=said)
    yield Picture(key=f"projections {unit}", title=f"Unit {unit}: their projections", pixels=tiles(drawings),
                  note="Grey is zero; each is scaled to its own largest value.")
    digest = str(state["hash"][u, 0])
    yield Picture(key=f"strongest {unit}", title=f"Unit {unit}: where in {state['name'][u, 0]}", picture=digest,
                  pixels=state["shown"][u, 0], marks=(box,))
    yield Heatmap(key=f"unit {unit}", title=f"Unit {unit}: projection on {state['name'][u, 0]}", picture=digest,
                  values=np.abs(state["drawn"][u, 0]).max(0), over=f"strongest {unit}", view="abs", marks=(box,),
                  axes=(Axis("y", "px"), Axis("x", "px")), note="The largest over the input's channels.")
