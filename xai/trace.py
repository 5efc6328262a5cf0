"""One recorded forward of a network: every tensor that a module returned, under all its names, and who read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from xai import outputs

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Firing:
    """One time that a module returned a tensor: call number, place in the output, and the tensor's version by then."""

    name: str
    module: nn.Module
    call: int
    path: str
    version: int
    order: int


@dataclass(eq=False)
class Node:
    """One tensor of the traced forward. In-place operations keep the tensor: bn, add and ReLU may share one node.

    `firings` in execution order, without modules that hand their input through (identity, dropout in eval mode, a mere
    change of shape); `readers` are the modules that took the tensor as an input.
    """

    tensor: Tensor
    firings: list[Firing] = field(default_factory=list)
    readers: list[nn.Module] = field(default_factory=list)

    @property
    def last(self) -> list[Firing]:
        """The firings that saw the value as the network left it, innermost module first."""
        return [firing for firing in self.firings if firing.version == self.firings[-1].version]


@dataclass
class Trace:
    """Nodes in the order in which their final values were made; the network's output; the picture that went in."""

    nodes: list[Node]
    output: Any
    picture: Tensor
    calls: Counter[str]


class _Recorder:
    def __init__(self, module: nn.Module, picture: Tensor) -> None:
        self.calls: Counter[str] = Counter()
        self._nodes: dict[int, Node] = {}  # by id; the nodes hold the tensors, so no id is used twice
        self._entered: dict[nn.Module, list[list[tuple[Tensor, int]]]] = {}
        self._order = 0
        self._cut = not picture.requires_grad
        self._names = {child: name for name, child in module.named_modules()}

    def enter(self, module: nn.Module, arguments: Any, keywords: Any) -> None:
        """Note what the module reads, before it changes a tensor in place or appends to a list that it was given."""
        read = [(tensor, tensor._version) for tensor in _floating((arguments, keywords))]
        self._entered.setdefault(module, []).append(read)

    def leave(self, module: nn.Module, arguments: Any, keywords: Any, output: Any) -> Any:
        name = self._names[module]
        call = self.calls[name]
        self.calls[name] += 1
        read = self._entered[module].pop()
        for tensor, _ in read:
            if id(tensor) in self._nodes:
                self._nodes[id(tensor)].readers.append(module)
        if self._cut:
            output = _with_leaves(output)
        unchanged = [tensor for tensor, version in read if tensor._version == version and id(tensor) in self._nodes]
        for path, tensor in outputs.tensors(output):
            if name and tensor.is_floating_point() and not any(_is_view(tensor, other) for other in unchanged):
                node = self._nodes.setdefault(id(tensor), Node(tensor))
                node.firings.append(Firing(name, module, call, path, tensor._version, self._order))
                self._order += 1
        return output

    def nodes(self) -> list[Node]:
        return sorted(self._nodes.values(), key=lambda node: node.last[0].order)


def trace(module: nn.Module, example: Tensor) -> Trace:
    """Run the first picture of `example` through the network with every module watched and gradients recorded.

    Parameters are frozen and all modules in eval mode meanwhile; flags, requires_grad and hooks are as before
    afterwards, also after an exception. Works inside no_grad and inference_mode. Keeps every output of every module,
    for one picture, until the trace is dropped.
    """
    with torch.inference_mode(False), torch.enable_grad(), frozen(module):
        picture = example[:1].detach().clone()
        if picture.is_floating_point():
            picture.requires_grad_()
        recorder = _Recorder(module, picture)
        handles: list[RemovableHandle] = []
        try:
            for child in module.modules():
                handles.append(child.register_forward_pre_hook(recorder.enter, with_kwargs=True))
                handles.append(child.register_forward_hook(recorder.leave, with_kwargs=True))
            # A network may begin in place, which a leaf does not allow.
            output = module(picture.clone())
        finally:
            for handle in handles:
                handle.remove()
    return Trace(recorder.nodes(), output, picture, recorder.calls)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter that requires grad; every flag of every submodule is put back afterwards."""
    training = [(child, child.training) for child in module.modules()]
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        module.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for child, flag in training:
            child.training = flag
        for parameter in wanted:
            parameter.requires_grad_()


@contextmanager
def redrawn(module: nn.Module, seed: int = 0) -> Iterator[list[str]]:
    """All-zero weights of linear maps and convolutions are random meanwhile; yields the names of those modules."""
    kept = {name: child.weight.detach().clone() for name, child in _zero_layers(module)}
    try:
        yield redraw_zero_weights(module, seed)
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                module.get_submodule(name).weight.copy_(value)  # type: ignore[operator]


def redraw_zero_weights(module: nn.Module, seed: int = 0) -> list[str]:
    """Draw all-zero weights of linear maps and convolutions from N(0, 0.02^2) and return the names of those modules.

    Some networks are born with a zero classifier: all scores are equal then, and no gradient enters the network.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = _zero_layers(module)
    with torch.no_grad():
        for _, child in layers:
            child.weight.copy_(0.02 * torch.randn(child.weight.shape, generator=generator))
    return [name for name, _ in layers]


def _zero_layers(module: nn.Module) -> list[tuple[str, nn.Linear | nn.modules.conv._ConvNd]]:
    layers = [(name, child) for name, child in module.named_modules() if isinstance(child, _WEIGHTED)]
    return [(name, child) for name, child in layers if not child.weight.any()]


def _with_leaves(output: Any) -> Any:
    """Where the input cannot require grad (whole numbers), the first floating-point outputs are where gradients end."""
    for path, tensor in list(outputs.tensors(output)):
        if tensor.is_floating_point() and not tensor.requires_grad:
            output = outputs.put(output, path, tensor.detach().requires_grad_().clone())
    return output


def _floating(values: Any) -> list[Tensor]:
    return [tensor for _, tensor in outputs.tensors(values) if tensor.is_floating_point()]


def _is_view(tensor: Tensor, other: Tensor) -> bool:
    """Whether `tensor` is `other` or holds the very same numbers in another shape."""
    return tensor.numel() == other.numel() and tensor.data_ptr() == other.data_ptr()
