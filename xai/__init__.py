"""xai: why did the model say that, and should I believe the answer? All that a user needs, imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import filterdb as filterdb
    from xai.errors import XaiError as XaiError
    from xai.images import Image as Image
    from xai.images import Images as Images
    from xai.images import load_images as load_images
    from xai.linear import linearize as linearize
    from xai.model import Model as Model
    from xai.result import Result as Result
    from xai.run import Explanation as Explanation
    from xai.run import analyze as analyze
    from xai.run import explain as explain
    from xai.subject import Subject as Subject
    from xai.targets import Target as Target
    from xai.zoo.loading import load as load

_WHERE = {
    "XaiError": "xai.errors", "Image": "xai.images", "Images": "xai.images", "load_images": "xai.images",
    "linearize": "xai.linear",
    "Model": "xai.model", "Result": "xai.result", "Explanation": "xai.run", "explain": "xai.run", "analyze": "xai.run",
    "Subject": "xai.subject", "Target": "xai.targets", "load": "xai.zoo.loading",
}
__all__ = sorted([*_WHERE, "filterdb"])


def __getattr__(name: str) -> Any:
    """A public name, or the class of an analyzer (`xai.GradCAM`), from the file that defines it."""
    if name == "filterdb":
        return importlib.import_module("filterdb")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name[:1].isupper():
        from xai import catalog

        for entry in catalog.entries().values():
            if entry.class_name == name:
                return catalog.find(entry.name)
    raise AttributeError(f"module 'xai' has no attribute {name!r}")


def __dir__() -> list[str]:
    from xai import catalog

    return sorted([*__all__, *(e.class_name for e in catalog.entries().values() if e.class_name)])
