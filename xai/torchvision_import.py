"""Import torchvision also where its compiled part cannot load (a CPU torch beside the CUDA build of torchvision)."""

from __future__ import annotations

import sys
from types import ModuleType

import torch

# A collected Library unregisters its operators, so it must outlive the import.
_LIBRARIES: list[torch.library.Library] = []


def ensure_torchvision() -> ModuleType:
    """Return the torchvision package; call this before timm or torchvision is imported.

    torchvision registers fake kernels for `nms` and `qnms` without asking whether its compiled extension, which
    declares the two operators, could be loaded. Where it could not, they are declared here and the import is repeated:
    models, transforms and feature extraction then work; `ops.nms`, `ops.roi_align` and detection models in eval mode
    raise torchvision's own RuntimeError. With a working extension nothing is declared.

    Raises ImportError if torchvision is not installed.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _declare_missing_operators()
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # leftovers of the failed import
        import torchvision
    module: ModuleType = torchvision
    return module


def _declare_missing_operators() -> None:
    if _LIBRARIES:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch's own gap
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]  # torch's own gap
    _LIBRARIES.append(library)
