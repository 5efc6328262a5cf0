"""Models of timm, from its register or from the Hugging Face hub, prepared as their pretrained configuration says."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from xai.errors import XaiError, error, near
from xai.model import Model
from xai.preprocessing import Preprocessing
from xai.torchvision_import import ensure_torchvision
from xai.zoo.cache import hub_file, torch_file
from xai.zoo.fitting import fit
from xai.zoo.names import names, unknown
from xai.zoo.request import Request, imagenet_labels
from xai.zoo.spec import refuse_options
from xai.zoo.state_dicts import State, read_state

# ImageNet's larger label sets by their number of classes, under timm's names for them.
SUBSETS = {
    21841: "imagenet22k",
    21842: "imagenet22k-ms",
    21843: "imagenet21k-goog",
    11221: "imagenet21k-miil",
    11821: "imagenet12k",
}
HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def load(request: Request) -> Model:
    """A timm model. Raises XaiError where the name, the weights or an option does not fit."""
    spec, options = request.spec, request.options
    ensure_torchvision()
    configuration, arguments = _from_hub(request) if spec.source == "hf-hub" else _from_register(spec.id)
    if request.weights is None and (options.classes or configuration.num_classes) != configuration.num_classes:
        refuse_options(
            spec,
            ("classes",),
            f"The pretrained weights have {configuration.num_classes} outputs: add --weights FILE or --weights random",
        )
    notes: list[str] = []
    overlay: dict[str, Any] = {}
    if request.weights is None:
        overlay, weights, notes = _pretrained(request, configuration)
    network = request.seeded(lambda: _build(request, configuration, overlay, arguments))
    if request.random:
        weights, notes = request.fill(network)
    elif request.weights is not None:
        notes = _fit_file(request, network)
        weights = request.file()
    labels, told = _labels(network, request)
    head = "embedding" if not network.num_classes else None
    return request.model(
        network,
        preprocessing=_preprocessing(network, notes),
        weights=weights,
        labels=labels,
        head=head,
        notes=notes + told,
    )


def _from_register(name: str) -> tuple[Any, dict[str, Any]]:
    from timm.models import get_pretrained_cfg, list_pretrained

    architecture, _, tag = name.partition(".")
    if architecture not in names("timm"):
        raise unknown(name, ("timm",))
    try:
        configuration = get_pretrained_cfg(name)
    except RuntimeError as problem:
        tags = [
            full.partition(".")[2]
            for full in list_pretrained(f"{architecture}.*")
            if full.startswith(architecture + ".")
        ]
        raise error(
            f"the tag of timm:{architecture}",
            f"one of {', '.join(tags) or 'none at all'}",
            repr(tag),
            f"Did you mean {', '.join(near(tag, tags, 3) or tags[:3])}?" if tags else "Leave it out",
        ) from problem
    if configuration is None:
        from timm.models import PretrainedCfg

        configuration = PretrainedCfg()
    return configuration, {}


def _from_hub(request: Request) -> tuple[Any, dict[str, Any]]:
    """Configuration and arguments of a model on the hub, read from its config.json as timm reads it."""
    import json

    from timm.models import PretrainedCfg

    spec = request.spec
    path, _ = hub_file(spec.id, ("config.json",), spec.revision or None, spec.name)
    read = json.loads(path.read_text(encoding="utf-8"))
    if "architecture" not in read or read["architecture"] not in names("timm"):
        raise error(
            "the model",
            "a timm model on the Hugging Face hub",
            repr(spec.name),
            f"For one of transformers write hf:{spec.id}",
        )
    fields = read.get("pretrained_cfg", read)
    known = PretrainedCfg.__dataclass_fields__
    values = {key: value for key, value in fields.items() if key in known}
    values |= {
        "architecture": read["architecture"],
        "hf_hub_id": f"{spec.id}@{spec.revision}" if spec.revision else spec.id,
    }
    for key in ("num_classes", "label_names", "label_descriptions"):
        if key in read:
            values[key] = read[key]
    return PretrainedCfg(**values), dict(read.get("model_args", {}))


def _pretrained(request: Request, configuration: Any) -> tuple[dict[str, Any], str, list[str]]:
    """Where timm shall take the weights from, what they are called, and notes."""
    what = request.spec.name
    if configuration.hf_hub_id:
        repository, _, revision = configuration.hf_hub_id.partition("@")
        repository = repository.rstrip("/")
        if repository.endswith("timm") and configuration.architecture:  # timm/ stands for timm/<name>.<tag>
            repository = f"{repository}/{configuration.architecture}.{configuration.tag}"
        wanted = (configuration.hf_hub_filename,) if configuration.hf_hub_filename else HUB_WEIGHTS
        path, notes = hub_file(repository, wanted, revision or None, what)
        named = repository
    elif configuration.url:
        path, notes = torch_file(configuration.url, what)
        named = path.name
    else:
        raise error(
            f"the weights of {what}",
            "published with timm",
            "an architecture without any",
            "Give --weights FILE or --weights random",
        )
    if configuration.custom_load and path.suffix == ".npz":
        return {"file": str(path), "custom_load": True}, named, notes
    state = read_state(path)
    return {"state_dict": state.tensors}, named, notes + state.notes


def _build(request: Request, configuration: Any, overlay: dict[str, Any], arguments: dict[str, Any]) -> Any:
    import timm

    options = request.options
    more: dict[str, Any] = {**arguments, "num_classes": options.classes, "in_chans": options.channels}
    if options.size is not None and configuration.fixed_input_size:
        more["img_size"] = options.size
    name = configuration.architecture if request.spec.source == "hf-hub" else request.spec.id
    given = configuration if request.spec.source == "hf-hub" else None
    try:
        return timm.create_model(
            name, pretrained=bool(overlay), pretrained_cfg=given, pretrained_cfg_overlay=overlay or None, **more
        )
    except XaiError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError, KeyError) as problem:
        first = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]
        raise error(
            "the model",
            "one that timm can build with these options",
            f"{request.spec}: {first}",
            "Check size, channels and classes on the spec, or the weights' file in the cache",
        ) from problem


def _fit_file(request: Request, network: Any) -> list[str]:
    """Load the user's file as it is, else as timm translates checkpoints of other codes for this family."""
    state = read_state(request.weights or "")
    try:
        return fit(network, state, what=request.spec.name, classes_option=True)
    except XaiError as problem:
        translate = getattr(sys.modules.get(type(network).__module__), "checkpoint_filter_fn", None)
        translated = _translated(translate, state, network) if translate is not None else None
        if translated is None:
            raise
        try:
            notes = fit(network, translated, what=request.spec.name, classes_option=True)
        except XaiError:
            raise problem from None
        return [*notes, "names in the weights file translated by timm's own rules for this family"]


def _translated(translate: Any, state: State, network: nn.Module) -> State | None:
    try:
        return State(dict(translate(dict(state.tensors), network)), None, list(state.notes))
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError):
        return None  # the rules are not for this file: its own names are told


def _labels(network: Any, request: Request) -> tuple[Sequence[str] | None, list[str]]:
    configuration, classes = network.pretrained_cfg, network.num_classes
    if classes and classes == len(configuration.get("label_names") or ()):
        described = configuration.get("label_descriptions") or {}
        return [str(described.get(name, name)) for name in configuration["label_names"]], []
    if classes == 1000:
        told = "class names: ImageNet's, as the network has 1000 outputs (?labels= names others)"
        return imagenet_labels(), [told] if request.weights is not None and request.options.labels is None else []
    if classes in SUBSETS and request.weights is None:
        from timm.data.imagenet_info import ImageNetInfo

        info: Any = ImageNetInfo(SUBSETS[classes])
        if info.num_classes() == classes:
            return [info.index_to_description(i) for i in range(classes)], []
    return None, []


def _preprocessing(network: Any, notes: list[str]) -> Preprocessing:
    from timm.data.config import resolve_model_data_config

    resolve: Any = resolve_model_data_config  # untyped
    found = resolve(network)
    channels, height, width = found["input_size"]
    crop = "squash" if found["crop_mode"] == "squash" else "center"
    interpolation = found["interpolation"]
    if found["crop_mode"] == "border":
        notes.append(
            "timm pads this model's pictures to a square; here they are cropped to one (?crop=squash squeezes them)"
        )
    if interpolation not in ("bilinear", "bicubic", "nearest"):
        notes.append(f"timm resizes this model's pictures with {interpolation}; here it is bicubic")
        interpolation = "bicubic"
    resize = math.floor(max(height, width) / found["crop_pct"]) if crop == "center" and height == width else None
    return Preprocessing(
        (height, width),
        _each(found["mean"], channels),
        _each(found["std"], channels),
        resize=resize,
        crop=crop,
        interpolation=interpolation,
        channels=channels,
        reason=f"timm's pretrained configuration of {_full_name(network.pretrained_cfg)}",
    )


def _each(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One number a channel: timm gives three also where the network was built for another number."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _full_name(configuration: dict[str, Any]) -> str:
    return ".".join(filter(None, (configuration.get("architecture"), configuration.get("tag"))))
