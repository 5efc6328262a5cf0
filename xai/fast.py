"""The fastest faithful form of a network: batch norm folded into convolutions, channels-last, frozen, in eval mode."""

from __future__ import annotations

import copy
import platform
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xai.modules import copied

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SMALL = 20480  # values; a single picture's input that holds no more is never computed by oneDNN


@dataclass(frozen=True)
class Fast:
    """A folded copy of a network. `folded` names the convolutions whose own output is no longer the original's."""

    module: nn.Module
    folded: frozenset[str]


class Folded(nn.Module):
    """What stands where a batch norm stood: nothing, then whatever that norm carried with it (timm's drop and act)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name, child in norm.named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, ...) -> the same shape."""
        for child in self.children():
            x = child(x)
        return x


class Pointwise(nn.Conv2d):
    """A 1x1 convolution with stride 1 that oneDNN computes, whatever the number of threads.

    With one thread torch takes a plain matrix product instead (measured 2 x slower where MKL does not use the
    processor's widest instructions), unless the kernel is dilated; that of one value can be, without any effect.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, h, w) -> (n, K, h, w)."""
        worth = x.shape[-2] * x.shape[-1] > 1 and (len(x) > 1 or x.numel() > SMALL)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 2 if worth else 1)


class _Watch(TorchFunctionMode):
    """Notes whether an instance norm runs."""

    found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found = self.found or func is F.instance_norm
        return func(*args, **(kwargs or {}))


def freeze(module: nn.Module) -> nn.Module:
    """Eval mode, no gradient to any parameter: a backward costs 0.7 of a full one; nothing below a cut is recorded."""
    return module.eval().requires_grad_(False)


def fast_form(module: nn.Module, example: Any) -> Fast:
    """A copy of `module` in its fastest form that still gives the same output on `example` (to 1e-4 of its largest).

    Folding needs a convolution whose output goes into one batch norm and nowhere else. Which ones do is seen in one
    forward; the comparison at the end catches a second reader of the same tensor, and then nothing is folded. Measured
    gain: 1.1 to 2.8 x. A network with an instance norm stays as it lies: on a CPU torch 2.13 reads a channels-last
    gradient of its output as if it were contiguous, and gives a wrong one of its input.
    """
    own = copied(module)
    if own is None:
        return Fast(module, frozenset())  # a module that cannot be copied is used as it is
    original = freeze(own)
    candidate = copy.deepcopy(original)
    with torch.no_grad():
        pairs = _pairs(original, example)
        with _Watch() as watch:
            reference = original(example)
        laid_out = not watch.found and isinstance(example, Tensor) and example.ndim == 4 and example.is_floating_point()
        for conv, norm in pairs:
            _fold(candidate, conv, norm)
        _point(candidate)
        if laid_out:
            candidate = candidate.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
        if _agrees(candidate, example, reference):
            return Fast(candidate, frozenset(conv for conv, _ in pairs))
        if laid_out and example.element_size() < 4:  # rounded too much
            laid = copy.deepcopy(original).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
            if _agrees(laid, example, reference, 4 * torch.finfo(example.dtype).eps):
                return Fast(laid, frozenset())
        if laid_out:  # a `view` of an activation or a weight cannot be had of what lies channels-last
            plain = candidate.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stub
            if _agrees(plain, example, reference):
                return Fast(plain, frozenset(conv for conv, _ in pairs))
    return Fast(original, frozenset())


def _pairs(module: nn.Module, example: Any) -> list[tuple[str, str]]:
    """(convolution, batch norm) names where the norm's input is that convolution's output and both run once."""
    made: dict[int, tuple[str, Tensor]] = {}
    calls: Counter[str] = Counter()
    found: list[tuple[str, str]] = []
    handles = []

    def after_conv(name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            calls[name] += 1
            made[id(output)] = (name, output)  # the tensor is kept, so that its id stays its own
        return hook

    def before_norm(name: str) -> Any:
        def hook(_: nn.Module, args: Any) -> None:
            calls[name] += 1
            if args and id(args[0]) in made:
                found.append((made[id(args[0])][0], name))
        return hook

    for name, part in module.named_modules():
        if type(part) in CONVS:
            handles.append(part.register_forward_hook(after_conv(name)))
        elif isinstance(part, NORMS) and part.track_running_stats and part.running_var is not None:
            handles.append(part.register_forward_pre_hook(before_norm(name)))
    try:
        module(example)
    finally:
        for handle in handles:
            handle.remove()
    readers = Counter(conv for conv, _ in found)
    return [(c, b) for c, b in found if calls[c] == calls[b] == readers[c] == 1]


def _fold(module: nn.Module, conv_name: str, norm_name: str) -> None:
    conv: Any = module.get_submodule(conv_name)
    norm: Any = module.get_submodule(norm_name)
    gain = torch.rsqrt(norm.running_var + norm.eps)
    shift = -norm.running_mean * gain
    if norm.affine:
        gain, shift = gain * norm.weight, shift * norm.weight + norm.bias
    if conv.bias is not None:
        shift = shift + conv.bias * gain
    shape = (-1,) + (1,) * (conv.weight.ndim - 1)
    conv.weight = nn.Parameter(conv.weight * gain.reshape(shape), requires_grad=False)
    conv.bias = nn.Parameter(shift, requires_grad=False)
    parent, _, leaf = norm_name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, Folded(norm).eval())


def _point(module: nn.Module) -> None:
    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own gap
    if not there or platform.machine() not in ("x86_64", "AMD64"):
        return
    for part in module.modules():
        if type(part) is not nn.Conv2d or part.weight.dtype != torch.float32 or part.weight.device.type != "cpu":
            continue
        if part.kernel_size == part.stride == (1, 1) and part.groups == 1 and part.padding_mode == "zeros":
            part.__class__ = Pointwise  # in place, so that a module with several names stays one


def _agrees(module: nn.Module, example: Any, reference: Any, share: float = 1e-4) -> bool:
    """Whether a form gives what the network gives; one that cannot run does not."""
    try:
        found = module(example)
    except RuntimeError:
        return False
    return _same(reference, found, share)


def _same(one: Any, two: Any, share: float = 1e-4) -> bool:
    from torch.utils._pytree import tree_leaves

    pairs = [(a, b) for a, b in zip(tree_leaves(one), tree_leaves(two), strict=True) if isinstance(a, Tensor)]
    return all(bool((a - b).abs().max() <= share * a.abs().max() + 1e-12) for a, b in pairs if a.is_floating_point())
