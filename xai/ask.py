"""What a person asked for, before anything is loaded, and the first steps from there: analyzers, models, pictures."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xai import catalog
from xai.attribution import Attribution
from xai.errors import XaiError, error
from xai.evidence import check_level
from xai.images import Images, load_images
from xai.metric import Metric, several_targets
from xai.model import Model
from xai.result import Failure
from xai.subject import as_model, as_targets
from xai.targets import Target

DEFAULT_MODEL, DEFAULT_METHOD = "xai:photo20", "gradcam"
FORMATS = ("npy", "png", "overlay")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a person asked for, before any loading. `target`: None is the method's own. `weights`: one for all, or one
    each. `save`: npy, png, overlay. `chunk`: pictures a batch and inputs a forward (None: by memory and time).
    `compile`: as in `Model.infer`. `evidence`: how much the maps are checked, off, quick or full."""

    models: tuple[Any, ...]
    images: tuple[Any, ...] = ()
    methods: tuple[str, ...] = (DEFAULT_METHOD,)
    target: Any = None
    settings: Mapping[str, str] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    device: str = "auto"
    precision: str | None = None
    seed: int = 0
    memory_bytes: int | None = None
    chunk: int | None = None
    compile: bool = False
    evidence: str = "quick"
    save: tuple[str, ...] = ()
    command: str = ""

    def __post_init__(self) -> None:
        for name in self.save:
            if name not in FORMATS:
                raise error("--save", f"one or more of {', '.join(FORMATS)}", repr(name), "Separate several by commas")
        check_level(self.evidence)
        if len(self.weights) > 1 and len(self.weights) != len(self.models):
            raise error("--weights", f"given once, or once for each of the {len(self.models)} models",
                        f"{len(self.weights)} times", "Give them in the order of the models")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise error("the seed", "a whole number from 0", self.seed, "Give one with --seed")

    def model(self, i: int) -> Model:
        """Load model i."""
        weights = self.weights[i % len(self.weights)] if self.weights else None
        model = as_model(self.models[i], **({"weights": weights, "device": self.device, "precision": self.precision,
                                             "seed": self.seed} if isinstance(self.models[i], str) else {}))
        if self.compile and not isinstance(self.models[i], Model):  # a Model says so itself
            model.compiled = True
        return model


def analyzers_of(ask: Ask) -> list[Any]:
    """The analyzers with their settings; raises XaiError for methods that cannot run together, or without a model."""
    if not ask.methods:
        raise error("the method", "one of those that `xai methods list` shows", "none", "Name one with --method")
    analyzers = catalog.make(list(ask.methods), dict(ask.settings))
    if len(analyzers) > 1 and not all(isinstance(a, Attribution) for a in analyzers):
        other = next(a.name() for a in analyzers if not isinstance(a, Attribution))
        raise error("several methods in one command", "methods that look at pictures one by one", other,
                    f"Run it alone: xai analyze {other}")
    if any(isinstance(a, Attribution) for a in analyzers) and not ask.models:
        raise error("the model", "named", "none", "Name one with --model")
    return analyzers


def targets_of(ask: Ask, analyzers: Sequence[Any]) -> tuple[Target, ...]:
    """What is explained: what was named, else what the method explains by itself. Raises XaiError where a metric is
    asked about several at once."""
    targets = as_targets(analyzers[0].explains if ask.target is None else ask.target)
    if len(targets) > 1 and isinstance(analyzers[0], Metric):
        raise several_targets(analyzers[0].name(), len(targets))
    return targets


def pictures_of(ask: Ask) -> Images | None:
    """All pictures in order, not decoded yet; a single one that is bad raises now."""
    if not ask.images:
        return None
    images = load_images(ask.images[0] if len(ask.images) == 1 else list(ask.images))
    if len(images) == 1:
        images[0]
    return images


def sorted_out(images: Images | None, failures: list[Failure]) -> Images | None:
    """The pictures that can be read, for what cannot pass over a bad one on its way; the others go to `failures`."""
    if images is None:
        return None
    good, bad = images.good()
    failures += [Failure(name=name, sentence=said) for name, said in bad]
    if not len(good):
        raise none_usable(failures)
    return good


def none_usable(failures: Sequence[Failure]) -> XaiError:
    """The error for pictures of which all are bad, with what the first three said."""
    said = " ".join(failure.sentence for failure in failures[:3])
    more = f" And {len(failures) - 3} more." if len(failures) > 3 else ""
    return XaiError(f"one of the {len(failures)} pictures must be usable; got none that is. {said}{more}")


def replay(ask: Ask) -> str:
    """The command line that does the same, or, where a model or picture has no name, the Python call."""
    if not all(isinstance(v, str) for v in (*ask.models, *ask.images, ask.target or "")):
        shape: Callable[[Any], str] = lambda v: repr(v) if isinstance(v, str) else f"<{type(v).__name__}>"  # noqa: E731
        return (f"xai.explain({', '.join(map(shape, ask.models))}, {', '.join(map(shape, ask.images))}, "
                f"{','.join(ask.methods)!r}, target={shape(ask.target)}, seed={ask.seed})")
    of_pictures = len(ask.methods) > 1 or issubclass(catalog.find(ask.methods[0]), Attribution)
    methods = ",".join(ask.methods)
    words = ["xai", *(("explain", *ask.images) if of_pictures else ("analyze", methods)),
             *(w for m in ask.models for w in ("--model", m)),
             *(["--method", methods] if of_pictures else [w for one in ask.images for w in ("--data", one)]),
             *(["--target", ask.target] if ask.target is not None else []),
             "--seed", str(ask.seed),
             *(w for f in ask.weights for w in ("--weights", f)),
             *(w for k, v in ask.settings.items() for w in ("--set", f"{k}={v}")),
             *(["--device", ask.device] if ask.device != "auto" else []),
             *(["--precision", ask.precision] if ask.precision else []),
             *(["--memory", str(ask.memory_bytes)] if ask.memory_bytes else []),
             *(["--compile"] if ask.compile else []),
             *(["--evidence", ask.evidence] if ask.evidence != "quick" else [])]
    return shlex.join(words)


def several(value: Any) -> tuple[Any, ...]:
    """One thing or several as a tuple; paths as text."""
    if value is None:
        return ()
    each = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return tuple(str(one) if isinstance(one, Path) else one for one in each)
