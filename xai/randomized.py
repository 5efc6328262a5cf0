"""A network whose parameters were drawn anew, whole or from the output down: what a map must not survive."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from xai import seeds
from xai.errors import error
from xai.layers import LayerView
from xai.model import Model
from xai.modules import copied, kept

_PARTS: weakref.WeakKeyDictionary[Model, dict[str, tuple[str, ...]]] = weakref.WeakKeyDictionary()
MOMENTS = ("running_mean", "running_var")


class Twin(Model):
    """A copy of a model with other parameters, which passes for the model in all else.

    Its passes count on the original's cost; a layer is the one that the original means by it.
    """

    def __init__(self, original: Model, module: nn.Module) -> None:
        options = original.options
        super().__init__(
            module, preprocessing=original.preprocessing, labels=original.labels, capabilities=original.capabilities,
            spec=f"{original.spec} (randomised)", weights="randomised", random_weights=True,
            runs_code=original.runs_code, layer=options["layer"], grid=options["grid"], head=options["head"],
            output=options["output"])
        self.device, self.dtype = original.device, original.dtype
        self.cost = original.cost
        self._head = original.head  # seen on the original: what other weights say might look like another kind
        self._sizes, self._paces = original._sizes, original._paces
        self._original = weakref.ref(original)

    def view(self, layer: str = "auto", example: Tensor | None = None) -> LayerView:
        """The layer that the name means in the original."""
        original = self._original()
        return original.view(layer, example) if original is not None else super().view(layer, example)


def stages(model: Model) -> tuple[str, ...]:
    """The names of what can be drawn anew one after the other, from the output down to the input.

    A stage is a module that holds parameters of its own, in the reverse of the order in which the modules are entered
    in one forward of a noise picture (not counted); one that runs twice stands where it runs last. Parameters that a
    container holds itself (a class token, positions, a layer scale) are a stage of that container, "" the network
    itself, which is entered before what it contains. Parameters of a module that never runs by itself (the output
    projection inside torch's attention) belong to the container that uses it, those of a parametrisation to the module
    that bears it, tied ones to the stage nearest to the output. A stage in which drawing anew would change nothing
    (ones and zeros of a fresh norm) is joined with the next one down, the last with the one before. Raises XaiError
    where the model gives no access to its layers.
    """
    return tuple(parts_of(model))


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 1 to `count`, evenly spaced, the first and the last among them."""
    if most <= 1 or count <= 1:
        return [count] if count else []
    few = min(count, most)
    return [1 + round(k * (count - 1) / (few - 1)) for k in range(few)]


def randomized(model: Model, names: Iterable[str], seed: int) -> Model:
    """A copy of the model in which the parameters of those stages are drawn anew; the model stays as it is to the bit.

    Every tensor is shuffled by a permutation that depends on (seed, its name) alone, so that the copies of a cascade
    agree in what they share. That keeps its values, hence scale, share of signs, dtype and whatever bounds it must
    obey, while no value keeps its place; Adebayo et al. draw from the initialiser, which a finished network does not
    tell. A batch norm's running mean and variance are what the layer learned from its inputs: they are shuffled too, by
    one permutation of the channels, so that each mean keeps its variance. Tied weights stay tied.

    Raises XaiError where the model gives no access to its layers, a name is no stage, or the network cannot be copied.
    """
    parts, chosen = parts_of(model), tuple(names)
    unknown = [name for name in chosen if name not in parts]
    if unknown:
        raise error("a stage of the network", f"one of {', '.join(map(repr, parts)) or 'none'}", repr(unknown[0]),
                    "xai.randomized.stages names them")
    assert model._module is not None
    module = copied(model._module)
    if module is None:
        raise error("the network", "one that can be copied before its weights are drawn anew",
                    f"{model.spec}, which cannot", "Take out what no deep copy can be made of (open files, locks, "
                    "tensors that hang on a graph)")
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name in dict.fromkeys(chosen):
            for key in parts[name]:
                if key in parameters:
                    _shuffle([parameters[key].data], seeds.generator(seed, "randomised", key))
            norm = module.get_submodule(name)
            moments = [getattr(norm, key, None) for key in MOMENTS]
            held = [value for value in moments if isinstance(value, Tensor) and value.ndim == 1]
            if len(held) == len(MOMENTS):
                _shuffle(held, seeds.generator(seed, "randomised", f"{name}.moments"))
    return Twin(model, module)


def _shuffle(tensors: list[Tensor], generator: torch.Generator) -> None:
    """In place, all by one permutation: what else shares the memory sees it too."""
    order = torch.randperm(tensors[0].numel(), generator=generator)
    for value in tensors:
        value.copy_(value.flatten()[order.to(value.device)].view_as(value))


def parts_of(model: Model) -> dict[str, tuple[str, ...]]:
    """Stage -> the names of its parameters, from the output down."""
    model.need("hooks")
    if model not in _PARTS:
        assert model._module is not None
        _PARTS[model] = _joined(_owned(model._module, _entered(model)), dict(model._module.named_parameters()))
    return _PARTS[model]


def _entered(model: Model) -> list[str]:
    """The modules that run, by the last time that they are entered, the latest first."""
    module, last, count = model._module, dict[str, int](), itertools.count()
    assert module is not None
    example = model.example()

    def noting(name: str) -> Any:
        def hook(*_: Any) -> None:
            last[name] = next(count)
        return hook

    handles = []
    with kept(module):
        module.eval()
        try:
            handles = [part.register_forward_pre_hook(noting(name)) for name, part in module.named_modules()]
            with torch.no_grad():
                model.told(lambda: module(example), example)
        finally:
            for handle in handles:
                handle.remove()
    last.setdefault("", -1)
    return sorted(last, key=last.__getitem__, reverse=True)


def _owned(module: nn.Module, entered: list[str]) -> dict[str, list[str]]:
    """The modules that run -> the names of the parameters that are theirs; each tensor once."""
    rank = {name: k for k, name in enumerate(entered)}
    found: dict[str, list[str]] = {name: [] for name in entered}
    places: dict[int, list[tuple[str, str]]] = {}
    for key, value in module.named_parameters(remove_duplicate=False):
        owner = key.rpartition(".")[0]
        if ".parametrizations." in f".{owner}.":
            owner = f".{owner}".partition(".parametrizations.")[0].removeprefix(".")
        idle = owner not in rank
        while owner not in rank:
            owner = owner.rpartition(".")[0]
        if idle and not owner and len(entered) > 1:  # no part of the network runs it
            owner = entered[-2] if entered[-1] == "" else entered[-1]
        places.setdefault(id(value), []).append((owner, key))
    first = {id(value): key for key, value in module.named_parameters()}
    for number, held in places.items():
        owner = min((owner for owner, _ in held), key=rank.__getitem__)
        found[owner].append(first[number])
    return {name: keys for name, keys in found.items() if keys}


def _joined(owned: dict[str, list[str]], parameters: dict[str, nn.Parameter]) -> dict[str, tuple[str, ...]]:
    """Stages in which something changes; what never does goes with a neighbour."""
    found: dict[str, tuple[str, ...]] = {}
    waiting: list[str] = []
    for name, keys in owned.items():
        waiting += keys
        if _varied(parameters[key] for key in keys):
            found[name], waiting = tuple(waiting), []
    if waiting and found:
        last = next(reversed(found))
        found[last] += tuple(waiting)
    return found


def _varied(values: Iterable[Tensor]) -> bool:
    return any(value.numel() > 1 and bool((value != value.flatten()[0]).any()) for value in values)


def shares_of(names: Collection[str], most: int) -> list[tuple[str, ...]]:
    """The steps of a cascade: the first stages of `names`, growing to all of them in at most `most` steps."""
    order = tuple(names)
    return [order[:count] for count in spread(len(order), most)]
