"""Random numbers that depend on (seed, picture, method) alone, never on batch, order or engine."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *parts: str) -> int:
    """A 63-bit seed from a base seed and names (a picture's hash, a method), stable across machines and versions."""
    text = "\x1f".join([str(seed), *parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *parts: str) -> torch.Generator:
    """A CPU generator for these names: draw on the CPU and move, so that every device sees the same numbers."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *parts))
