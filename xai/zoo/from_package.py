"""The models that ship with the package, prepared as their card says."""

from __future__ import annotations

from typing import Any

from xai.errors import error
from xai.model import Model
from xai.preprocessing import Preprocessing
from xai.zoo.fitting import fit
from xai.zoo.names import unknown
from xai.zoo.request import Request
from xai.zoo.shipped import SHIPPED, Shipped, build, card, weights_file
from xai.zoo.spec import refuse_options
from xai.zoo.state_dicts import read_state


def load(request: Request) -> Model:
    """A shipped model. Raises XaiError where the name is unknown or its files are not in the package."""
    name = request.spec.id
    if name not in SHIPPED:
        raise unknown(name, ("xai", "torchvision", "timm"))
    entry, found = SHIPPED[name], card(name)
    classes = request.options.classes or entry.classes
    if request.weights is None and classes != entry.classes:
        refuse_options(
            request.spec,
            ("classes",),
            f"The shipped weights have {entry.classes} classes: add --weights FILE or --weights random",
        )
    channels = found.get("channels", 3) if found else 3
    if request.options.channels not in (None, channels):
        said = "one channel" if channels == 1 else f"{channels} channels"
        refuse_options(request.spec, ("channels",), f"This network takes {said}")
    network = request.seeded(lambda: build(name, classes))
    if request.weights is None:
        path = weights_file(name)
        notes = fit(network, read_state(path), what=request.spec.name) + _from_card(found)
        weights = f"shipped ({path.name})"
    else:
        weights, notes = request.fill(network, classes_option=True)
    labels = found["labels"] if found and classes == len(found["labels"]) else None
    return request.model(
        network, preprocessing=_preprocessing(name, entry, found), weights=weights, labels=labels, notes=notes
    )


def _from_card(found: dict[str, Any] | None) -> list[str]:
    """How good the shipped weights are and on what terms their data came, for the page."""
    if found is None:
        return []
    notes = [found["data"]["terms"]] if "terms" in found.get("data", {}) else []
    measured = found.get("validation")
    if measured is not None and "psnr" in measured:
        gain, low, high = (f"{measured[key]:+.2f}" for key in ("gain", "low", "high"))
        notes.insert(0, f"PSNR {measured['psnr']:.2f} dB over {measured['n']:,} validation pictures, {gain} dB against "
                        f"{measured['against_what']} (95 % interval {low} to {high})")
    elif measured is not None:
        share, low, high = (f"{100 * measured[key]:.1f}" for key in ("accuracy", "low", "high"))
        notes.insert(0, f"top-1 {share} % of {measured['n']:,} validation pictures (95 % interval {low} to {high})")
    return notes


def _preprocessing(name: str, entry: Shipped, found: dict[str, Any] | None) -> Preprocessing:
    if found is None:
        return Preprocessing(entry.size, reason=f"the package holds no card of {name}")
    try:
        resize = found["resize"]
        return Preprocessing(
            tuple(found["input_size"]),
            tuple(found["mean"]),
            tuple(found["std"]),
            resize=resize["short_side"],
            interpolation=resize["interpolation"].split(",")[0],
            channels=found.get("channels", 3),
            reason=f"the card of {name}",
        )
    except (KeyError, TypeError, AttributeError) as problem:
        raise error(
            f"the card of xai:{name}", "complete", f"one without {problem}", "Reinstall the package"
        ) from problem
