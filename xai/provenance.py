"""Where numbers come from: versions, device, threads, time, memory."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from datetime import UTC, datetime

from xai.result import Provenance

PACKAGES = ("xai-toolkit", "torch", "torchvision", "timm", "captum", "numpy", "pillow", "transformers", "onnxruntime")


def versions() -> dict[str, str]:
    """Python's and each relevant package's version, those that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def provenance(command: str, seed: int, device: str = "cpu", precision: str = "float32") -> Provenance:
    """The provenance of a result made now, here."""
    import torch

    return Provenance(command=command, seed=seed, device=device, precision=precision, threads=torch.get_num_threads(),
                      created=datetime.now(UTC).isoformat(timespec="seconds"), versions=versions())


def peak_memory() -> int | None:
    """The largest resident memory of this process so far, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
