"""Where tensors can lie and in which precision: devices by name, the memory that is free there."""

from __future__ import annotations

import os

import torch

from xai.errors import error

PRECISIONS = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str | torch.device) -> torch.device:
    """auto, cpu, cuda, cuda:1 or mps as a device; raises XaiError where it is not there."""
    if isinstance(name, torch.device):
        return name
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or not (index or "0").isdigit():
        raise error("the device", "auto, cpu, cuda or mps", repr(name), "Name one with --device")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (kind == "cuda" and int(index or 0) >= cards) or (kind == "mps" and not mps):
        raise error("the device", "one that this machine and this build of torch have", name, "Use --device auto")
    return torch.device(name)


def free_memory(device: torch.device) -> int:
    """Bytes free on the device (a rough 4 GiB where the system does not say)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30
