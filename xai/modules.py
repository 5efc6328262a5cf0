"""What is done with a bare torch module: its state kept, its copy, its hash."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from xai.errors import error


@contextlib.contextmanager
def kept(module: nn.Module | None) -> Iterator[None]:
    """Hooks, gradients, training flags, requires_grad and buffers' identity are put back, also after an exception.

    Raises XaiError for a network whose weights were made in inference mode: no gradient can ever pass them.
    """
    if module is None:
        yield
        return
    if any(p.is_inference() for p in module.parameters()):
        raise error("the network", "built outside torch.inference_mode", "weights that no gradient can pass",
                    "Build it outside that block, or load its state dict into one that was")
    modules = list(module.modules())
    training = [(m.training, dict(m._buffers)) for m in modules]
    hooks = [{k: v.copy() for k, v in vars(m).items() if k.endswith("_hooks") and isinstance(v, dict)}
             for m in modules]
    grads = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    for p, _, _ in grads:
        p.grad = None  # a backward adds to what is there, in place
    try:
        yield
    finally:
        for m, (was, buffers), saved in zip(modules, training, hooks, strict=True):
            m.training = was
            for key, buffer in buffers.items():  # one by one: a TorchScript module's table knows no update
                m._buffers[key] = buffer
            for key, table in saved.items():
                current = getattr(m, key)
                current.clear()
                current.update(table)
        for p, requires, grad in grads:
            p.requires_grad_(requires)
            p.grad = grad


def moved(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The module there, in that precision: itself where it is so, else a copy (where it can be copied)."""
    there = all(t.device.type == device.type and device.index in (None, t.device.index)
                and (t.dtype == dtype or not t.is_floating_point()) for t in (*module.parameters(), *module.buffers()))
    own = None if there else copied(module)
    return module if there else (module if own is None else own).to(device, dtype)


def copied(module: nn.Module) -> nn.Module | None:
    """A deep copy, or None where the module does not allow one."""
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError):
        return None


def disinferred(module: nn.Module) -> None:
    """Replace tensors that a forward in inference mode has left in the module (a cache of positions, say) by ordinary
    ones: else no gradient could pass them later."""
    for part in module.modules():
        for key, value in vars(part).items():
            if isinstance(value, Tensor) and value.is_inference():
                setattr(part, key, value.clone())
            elif isinstance(value, dict):
                for name, inner in value.items():
                    if isinstance(inner, Tensor) and inner.is_inference():
                        value[name] = inner.clone()


def hash_state(state: dict[str, Any]) -> str:
    """Hex sha256, first 16 digits, over the names, dtypes, shapes and bytes of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()[:16]
