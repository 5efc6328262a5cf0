"""`load(spec)`: a model by name, from whichever source holds it."""

from __future__ import annotations

import importlib
from dataclasses import replace

from xai.errors import error
from xai.model import Model
from xai.zoo import names
from xai.zoo.request import Request
from xai.zoo.spec import Spec, parse

# The file that loads each source; each is imported when it is asked for and defines load(request) -> Model.
LOADERS = {
    "xai": "xai.zoo.from_package",
    "torchvision": "xai.zoo.from_torchvision",
    "timm": "xai.zoo.from_timm",
    "hf-hub": "xai.zoo.from_timm",
    "hf": "xai.zoo.from_huggingface",
    "file": "xai.zoo.from_code",
    "py": "xai.zoo.from_code",
    "pt2": "xai.zoo.from_export",
    "torchscript": "xai.zoo.from_export",
    "onnx": "xai.zoo.from_onnx",
}


def load(
    spec: str, *, weights: str | None = None, device: str = "auto", precision: str | None = None, seed: int = 0
) -> Model:
    """The model that `spec` names, `[source:]id[@revision][?option=value&...]`, ready to be run.

    weights: None for the source's own (from a local cache or downloaded), a file with a state dict (read without
    running code), or "random" for initial weights drawn from `seed`. device: auto, cpu, cuda or mps. precision:
    float32, float64, bfloat16 or float16. Raises XaiError for an unknown name, an option without sense, and weights
    that cannot be had or do not fit.
    """
    request = Request(resolve(spec), weights or None, device, precision, seed)
    request.options  # noqa: B018  # a bad option is told before anything is loaded
    loader = importlib.import_module(LOADERS[request.spec.source])
    model = loader.load(request)
    if not isinstance(model, Model):
        raise error("a loader", "one that returns a Model", type(model).__name__, "Report this as a bug")
    return model


def resolve(text: str) -> Spec:
    """The canonical spec of `text`: a bare name gets the source that holds it (shipped, torchvision, timm)."""
    spec = parse(text)
    return spec if spec.source else replace(spec, source=names.find(spec.id))
