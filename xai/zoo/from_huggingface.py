"""Image classification models of transformers, from the Hugging Face hub, its cache or a folder; safetensors only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xai.errors import XaiError, error
from xai.model import Model
from xai.preprocessing import Preprocessing
from xai.torchvision_import import ensure_torchvision
from xai.zoo.cache import hub_file, hub_has, hub_reachable, unavailable
from xai.zoo.request import Request, unknown_preprocessing
from xai.zoo.spec import refuse_options

RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
PROBLEMS = (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError)


def load(request: Request) -> Model:
    """The model, by the code of transformers, never the repository's. Raises XaiError where it cannot be had."""
    spec = request.spec
    refuse_options(spec, ("classes", "channels"), "The repository's configuration decides that")
    transformers = _transformers()
    with quiet(transformers):
        where, more = _place(request)
        configuration = _told(
            request, lambda: transformers.AutoConfig.from_pretrained(where, trust_remote_code=False, **more)
        )
        network, weights, notes = _network(request, transformers, configuration, where, more)
        processor = _processor(request, transformers, where, more)
    preprocessing = _preprocessing(where, processor, configuration, notes)
    if getattr(processor, "do_flip_channel_order", False):
        network.register_forward_pre_hook(_blue_first)
        notes.append("takes blue, green, red: the channels are turned round before the network")
    head = "multi-label" if configuration.problem_type == "multi_label_classification" else None
    return request.model(
        network, preprocessing=preprocessing, weights=weights, labels=_labels(configuration), head=head, notes=notes
    )


def _transformers() -> Any:
    ensure_torchvision()
    try:
        import transformers
    except ImportError as problem:
        raise error(
            "a model of hf:",
            "loaded by transformers",
            "no package of that name",
            "Install it with pip install 'xai-toolkit[hf]'",
        ) from problem
    return transformers


def _place(request: Request) -> tuple[str, dict[str, Any]]:
    """A folder, or the repository with what transformers needs to find it; raises where there is no configuration."""
    spec = request.spec
    folder = Path(spec.id).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise error(
                "the folder of a transformers model",
                "one with config.json",
                str(folder),
                "Save it with save_pretrained()",
            )
        return str(folder), {"local_files_only": True}
    if spec.id.startswith((".", "/", "~")) or spec.id.count("/") > 1:
        raise error(
            "the model", "a folder that exists, or OWNER/NAME on the Hugging Face hub", repr(spec.id), "Check the path"
        )
    hub_file(spec.id, ("config.json",), spec.revision or None, spec.name)
    return spec.id, {"local_files_only": not hub_reachable(), "revision": spec.revision or "main"}


def _network(
    request: Request, transformers: Any, configuration: Any, where: str, more: dict[str, Any]
) -> tuple[nn.Module, str, list[str]]:
    automatic = transformers.AutoModelForImageClassification
    told: dict[str, Any] = {"attn_implementation": "eager", "trust_remote_code": False}
    if request.weights is not None:
        network = request.seeded(lambda: _told(request, lambda: automatic.from_config(configuration, **told)))
        weights, notes = request.fill(network)
        return network, weights, notes
    options = {**told, **more, "use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    network, info = _told(request, lambda: automatic.from_pretrained(where, **options))
    missing = sorted(map(str, info["missing_keys"]))
    if missing:
        raise error(
            f"the weights of {request.spec.name}",
            "those of an image classifier",
            f"a repository without {', '.join(missing[:3])}",
            "Take a model that was trained to classify, or give --weights FILE or --weights random",
        )
    return network, f"model.safetensors of {request.spec.id}", []


def _told(request: Request, call: Any) -> Any:
    try:
        return call()
    except XaiError:
        raise
    except PROBLEMS as problem:
        what, text = request.spec.name, str(problem)
        first = (text.strip().splitlines() or [type(problem).__name__])[0][:200]
        if "Unrecognized configuration class" in text:
            raise error(
                "the model",
                "an image classifier of transformers",
                f"{what}, which is of another kind",
                "Choose another",
            ) from problem
        if "trust_remote_code" in text or "custom code" in text:
            raise error(
                "the model",
                "one whose code is part of transformers",
                f"{what}, which brings its own",
                "Its code is not run. Load it in your own file and name that: file:FILE.py:NAME",
            ) from problem
        if "safetensors" in text:
            raise error(
                f"the weights of {what}",
                "a model.safetensors",
                "none (other formats may carry code)",
                "Convert them, or give --weights FILE",
            ) from problem
        if isinstance(problem, OSError) and "connect" in text:
            raise unavailable(what, "its files are not in the cache of the Hugging Face hub", "the hub") from problem
        raise error(
            "the model",
            "one that transformers can load",
            f"{what}: {first}",
            "Check its files and the version of transformers",
        ) from problem


def _labels(configuration: Any) -> Sequence[str] | None:
    """The names in the configuration's id2label, unless they are the placeholders LABEL_0, LABEL_1, ..."""
    table = {int(key): str(value) for key, value in (configuration.id2label or {}).items()}
    names = [table.get(i, f"LABEL_{i}") for i in range(len(table))]
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def _processor(request: Request, transformers: Any, where: str, more: dict[str, Any]) -> Any:
    """The image processor, or None where none lies beside the weights: the preprocessing is then asked for."""
    if Path(where).is_dir():
        there = any((Path(where) / name).is_file() for name in PROCESSOR_FILES)
    else:
        there = hub_has(where, PROCESSOR_FILES, request.spec.revision or None)
    if not there:
        return None
    load_processor = transformers.AutoImageProcessor.from_pretrained
    return _told(request, lambda: load_processor(where, trust_remote_code=False, **more))


def _preprocessing(where: str, processor: Any, configuration: Any, notes: list[str]) -> Preprocessing:
    size = getattr(configuration, "image_size", None)
    fixed = (size, size) if isinstance(size, int) else tuple(size) if size else None
    channels = getattr(configuration, "num_channels", 3)
    if processor is None:
        return unknown_preprocessing(f"{where}, without preprocessor_config.json,", fixed, channels)
    found = processor.to_dict()
    geometry = _geometry(found, fixed or (224, 224), notes)
    interpolation = RESAMPLE.get(int(found.get("resample", 2)), "bicubic")
    if int(found.get("resample", 2)) not in RESAMPLE:
        notes.append("the image processor resizes with a filter that is not offered here: bicubic instead")
    low, high = _range(found)
    mean = tuple(found["image_mean"]) if found.get("do_normalize") else (0.0,) * channels
    std = tuple(found["image_std"]) if found.get("do_normalize") else (1.0,) * channels
    return Preprocessing(
        mean=mean,
        std=std,
        range=(low, high),
        channels=channels,
        interpolation=interpolation,
        reason=f"its image processor ({type(processor).__name__})",
        **geometry,
    )


def _geometry(found: dict[str, Any], fixed: tuple[int, int], notes: list[str]) -> dict[str, Any]:
    """size, resize and crop as the processor applies them: two sides squeeze, a shortest edge keeps the shape."""
    size, cropped = found.get("size") or {}, found.get("do_center_crop") and found.get("crop_size")
    inner = (cropped["height"], cropped["width"]) if isinstance(cropped, dict) and "height" in cropped else None
    if "shortest_edge" in size:
        edge, share = int(size["shortest_edge"]), found.get("crop_pct")
        if share is None or inner is not None:
            return {"size": inner or (edge, edge), "resize": edge}
        # ConvNeXt: below 384 pixels a crop of the enlarged picture, from there on the whole picture squeezed
        return {"size": (edge, edge), **({"crop": "squash"} if edge >= 384 else {"resize": int(edge / share)})}
    outer = (int(size["height"]), int(size["width"])) if "height" in size else fixed
    if inner is None or inner == outer:
        return {"size": outer, "crop": "squash"}
    notes.append(f"it squeezes pictures to {outer[0]}x{outer[1]} and crops: here they keep shape")
    return {"size": inner, "resize": min(outer)}


def _range(found: dict[str, Any]) -> tuple[float, float]:
    """What black and white become before mean and std: 0 to 1 for the usual factor of 1/255."""
    factor = float(found.get("rescale_factor", 1 / 255)) if found.get("do_rescale", True) else 1.0
    low = -1.0 if found.get("rescale_offset") else 0.0
    return low, low + round(255 * factor, 6)


def _blue_first(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (arguments[0].flip(1), *arguments[1:])


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No bars and no advice from transformers on the way."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
