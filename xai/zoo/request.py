"""What was asked of the zoo, and the last step of every source: a `Model` with the spec's overrides in place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xai.errors import error
from xai.model import Model
from xai.preprocessing import Preprocessing
from xai.torchvision_import import ensure_torchvision
from xai.trace import redraw_zero_weights
from xai.zoo.fitting import fit
from xai.zoo.spec import Options, Spec
from xai.zoo.state_dicts import file_hash, read_state

RANDOM = "random"


@dataclass(frozen=True)
class Request:
    """A resolved spec with the rest of the question. weights: None (the source's own), "random", or a file."""

    spec: Spec
    weights: str | None = None
    device: str = "auto"
    precision: str | None = None
    seed: int = 0

    @cached_property
    def options(self) -> Options:
        """The values of the spec's options."""
        return self.spec.read()

    @property
    def random(self) -> bool:
        """Whether the weights are to be drawn, not loaded."""
        return self.weights == RANDOM

    def seeded(self, build: Callable[[], Any]) -> Any:
        """What `build` returns, its random numbers drawn from the seed; the caller's random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return build()

    def fill(
        self,
        network: nn.Module,
        *,
        optional: Sequence[str] = (),
        classes_option: bool = False,
    ) -> tuple[str, list[str]]:
        """Load the weights file, or finish random weights; returns what they are, and notes."""
        if self.random:
            zero = redraw_zero_weights(network, self.seed)
            notes = (
                [f"{', '.join(zero)}: all zeros in this architecture, drawn anew (normal, std 0.02)"] if zero else []
            )
            return f"random (seed {self.seed})", notes
        assert self.weights is not None
        notes = fit(
            network, read_state(self.weights), what=self.spec.name, optional=optional, classes_option=classes_option
        )
        return self.file(), notes

    def file(self) -> str:
        """The weights file by name and content, as the record keeps it."""
        assert self.weights is not None
        path = Path(self.weights).expanduser()
        return f"{path.name} (sha256 {file_hash(path)})"

    def model(
        self,
        network: nn.Module | None,
        *,
        preprocessing: Preprocessing,
        weights: str,
        labels: Sequence[str] | None = None,
        head: str | None = None,
        notes: Iterable[str] = (),
        **more: Any,
    ) -> Model:
        """The Model; `more` goes to its constructor as it is."""
        options = self.options
        if options.labels is not None:
            labels = read_labels(options.labels)
        return Model(
            network,
            preprocessing=overridden(preprocessing, options),
            labels=labels,
            spec=str(self.spec),
            weights=weights,
            random_weights=self.random,
            device=self.device,
            precision=self.precision,
            layer=options.layer,
            grid=options.grid,
            head=options.head or head,
            output=options.output,
            notes=tuple(notes),
            **more,
        )


def overridden(own: Preprocessing, options: Options) -> Preprocessing:
    """The preprocessing with what the spec says in place of the model's own, and a reason that names what was replaced.

    A new size keeps the share of the picture that the crop takes, unless resize is given too.
    """
    changes: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("size", "mean", "std", "range", "resize", "crop", "interpolation", "channels")
        if getattr(options, name) is not None
    }
    if not changes:
        return own
    said = ", ".join(changes)
    if "size" in changes and "resize" not in changes and own.resize is not None:
        changes["resize"] = round(own.resize * max(changes["size"]) / max(own.size))
    channels = changes.get("channels", own.channels)
    for name in ("mean", "std"):
        values = changes.get(name, getattr(own, name))
        if name not in changes and values is not None and len(values) not in (1, channels):
            changes[name] = (sum(values) / len(values),)
            said += f" ({name} averaged over the model's own channels)"
        elif name in changes and len(values) not in (1, channels):
            raise error(
                f"the option {name}",
                f"one number or {channels}, one a channel",
                len(values),
                "Give as many, or set ?channels=",
            )
    if "range" in changes and "mean" not in changes and own.mean is not None:
        raise error(
            "the option range",
            "given together with mean and std, which are in its units",
            "range alone",
            "Add &mean=...&std=...",
        )
    if (changes.get("mean", own.mean) is None) != (changes.get("std", own.std) is None):
        raise error("the options mean and std", "given together", "one of them", "Give both, per channel")
    return own.with_options(
        **changes, reason=f"{own.reason}; {said} from the spec" if own.reason else f"{said} from the spec"
    )


def read_labels(text: str) -> tuple[str, ...]:
    """Class names: "imagenet", a text file with one a line, or JSON (a list, or an object from index to name)."""
    if text.lower() == "imagenet":
        return imagenet_labels()
    path = Path(text).expanduser()
    try:
        content = path.read_text(encoding="utf-8-sig")
        found: Any = json.loads(content) if path.suffix.lower() == ".json" else content.splitlines()
    except (OSError, ValueError) as problem:
        raise error(
            "the labels",
            "imagenet, or a text or JSON file of class names",
            f"{text!r} ({problem})",
            "Check the path and its content",
        ) from problem
    if isinstance(found, dict):
        if sorted(found, key=_number) != [str(i) for i in range(len(found))]:
            raise error(
                "the labels",
                "named from 0 without a gap where they are a JSON object",
                f"{text!r}",
                "Give a list of names",
            )
        found = [found[str(i)] for i in range(len(found))]
    names = tuple(str(name).strip() for name in found) if isinstance(found, list) else ()
    while names and not names[-1]:
        names = names[:-1]
    if not names or not all(names):
        raise error(
            "the labels",
            "one name a line, none of them empty",
            f"{text!r} with {len(names)} lines",
            "Fill the empty lines",
        )
    return names


def _number(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdecimal() else (-1, text)


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 class names of ImageNet-1k in torchvision's order."""
    ensure_torchvision()
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return tuple(_IMAGENET_CATEGORIES)


def unknown_preprocessing(what: str, size: tuple[int, int] | None = None, channels: int | None = None) -> Preprocessing:
    """For a network that does not say how its pictures were normalised: showing it one asks for mean and std."""
    said = "its input is fixed" if size else "224x224 unless ?size= says otherwise"
    return Preprocessing(size or (224, 224), channels=channels or 3, reason=f"{what} names no mean and std; {said}")
