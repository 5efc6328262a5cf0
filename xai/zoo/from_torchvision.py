"""Classification models of torchvision, with the preprocessing and class names that their weights' own entry states."""

from __future__ import annotations

import re
import warnings
from typing import Any

from torch import nn

from xai.errors import error
from xai.model import Model
from xai.preprocessing import Preprocessing
from xai.torchvision_import import ensure_torchvision
from xai.zoo.cache import torch_file
from xai.zoo.fitting import fit
from xai.zoo.names import names, unknown
from xai.zoo.request import Request
from xai.zoo.spec import refuse_options
from xai.zoo.state_dicts import State, read_state

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of GoogLeNet and Inception that only training uses
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)(?=\.)")


def load(request: Request) -> Model:
    """A torchvision model. Raises XaiError where the name, the weights or an option does not fit."""
    spec, options = request.spec, request.options
    if spec.id not in names("torchvision"):
        raise unknown(spec.id, ("torchvision",))
    if options.channels not in (None, 3):
        refuse_options(
            spec, ("channels",), "torchvision's networks take three channels; timm:NAME?channels= takes any number"
        )
    ensure_torchvision()
    entry = _entry(spec.id, spec.revision)
    classes = options.classes or len(entry.meta["categories"])
    if request.weights is None and classes != len(entry.meta["categories"]):
        refuse_options(
            spec,
            ("classes",),
            f"The pretrained weights have {len(entry.meta['categories'])}: add --weights FILE or --weights random",
        )
    network = request.seeded(lambda: _build(request, entry, classes))
    weights, notes = _fill(request, entry, network)
    _drop_auxiliary(network)
    labels = entry.meta["categories"] if classes == len(entry.meta["categories"]) else None
    if labels is not None and request.weights is not None and options.labels is None:
        notes.append("class names: ImageNet's, as the network has 1000 outputs (?labels= names others)")
    return request.model(
        network, preprocessing=_preprocessing(entry, request), weights=weights, labels=labels, notes=notes
    )


def _entry(name: str, revision: str) -> Any:
    """The weights' entry (URL, transforms, class names) that the revision names, or the default one."""
    from torchvision.models import get_model_weights

    table = get_model_weights(name)
    if not revision:
        return table.DEFAULT
    if revision not in table.__members__:
        raise error(
            f"the revision of torchvision:{name}",
            f"one of {', '.join(table.__members__)}",
            repr(revision),
            "Name one after the @",
        )
    return table[revision]


def _build(request: Request, entry: Any, classes: int) -> nn.Module:
    from torchvision.models import get_model

    name = request.spec.id
    more: dict[str, Any] = {}
    if name.startswith("vit_"):
        height, width = request.options.size or (entry.meta["min_size"][0],) * 2
        if height != width:
            refuse_options(request.spec, ("size",), "This network takes square pictures")
        more["image_size"] = height
    if name in ("inception_v3", "googlenet"):
        # as torchvision sets it for pretrained weights: renormalised inside, and with the auxiliary heads, to be loaded
        more = {"transform_input": True, "aux_logits": True, "init_weights": request.random}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            network: nn.Module = get_model(name, weights=None, num_classes=classes, **more)
        except (ValueError, RuntimeError, AssertionError) as problem:
            raise error(
                "the size",
                f"one that {request.spec.name} can be built for",
                f"{more.get('image_size')}: {problem}",
                "Leave ?size= out for the native one",
            ) from problem
    return network


def _fill(request: Request, entry: Any, network: nn.Module) -> tuple[str, list[str]]:
    if request.random:
        return request.fill(network)
    notes: list[str] = []
    if request.weights is not None:
        state, weights = read_state(request.weights), request.file()
    else:
        path, notes = torch_file(entry.url, str(request.spec.name))
        state, weights = read_state(path), f"{entry} ({path.name})"
    if request.spec.id.startswith("densenet"):
        state.tensors = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.tensors.items()}
    if request.spec.id.startswith("vit_"):
        _stretch_positions(network, state)
    return weights, notes + fit(network, state, what=request.spec.name, optional=AUXILIARY, classes_option=True)


def _stretch_positions(network: Any, state: State) -> None:
    """Position embeddings of another input size are interpolated, as torchvision does it (bicubic)."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    key = "encoder.pos_embedding"
    if key in state.tensors and state.tensors[key].shape != network.encoder.pos_embedding.shape:
        before = state.tensors[key].shape[1] - 1
        try:
            state.tensors = interpolate_embeddings(network.image_size, network.patch_size, dict(state.tensors))
        except ValueError:
            return  # not a square grid of patches: the check of shapes names it
        state.notes.append(
            f"position embeddings stretched from {before} to {state.tensors[key].shape[1] - 1} patches (bicubic)"
        )


def _drop_auxiliary(network: Any) -> None:
    """Without the heads that only training uses: torchvision itself drops them after loading, or never runs them."""
    for name in ("aux1", "aux2", "AuxLogits"):
        if isinstance(getattr(network, name, None), nn.Module):
            setattr(network, name, None)
            network.aux_logits = False


def _preprocessing(entry: Any, request: Request) -> Preprocessing:
    transforms = entry.transforms()
    (size,), (resize,) = transforms.crop_size, transforms.resize_size
    reason = f"torchvision's transforms of {entry}"
    if request.weights is not None:
        reason += ", the network's default weights" if not request.spec.revision else ""
    return Preprocessing(
        (size, size),
        tuple(transforms.mean),
        tuple(transforms.std),
        resize=resize,
        interpolation=transforms.interpolation.value,
        reason=reason,
    )
