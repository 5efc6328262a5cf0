"""The grammar of a model spec, `[source:]id[@revision][?option=value&...]`, and what each option's value means."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote

from xai.errors import XaiError, did_you_mean, error

# What each source's id names, for messages and for the help of the command line.
SOURCES = {
    "xai": "a model shipped with this package",
    "torchvision": "a classification model of torchvision",
    "timm": "a model of timm, with or without its tag",
    "hf-hub": "a timm model on the Hugging Face hub",
    "hf": "an image classification model of transformers, on the hub or in a folder",
    "file": "FILE.py:NAME, your own code",
    "py": "MODULE:NAME, your own installed code",
}
# A path with one of these endings is the model itself: a program together with its weights.
PROGRAMS = {".pt2": "pt2", ".ts": "torchscript", ".torchscript": "torchscript", ".pt": "torchscript", ".onnx": "onnx"}
WEIGHT_FILES = (".safetensors", ".pth", ".ckpt", ".bin", ".tar", ".npz", ".h5", ".pkl")
REVISED = ("torchvision", "hf-hub", "hf")
_SCHEME = re.compile(r"([A-Za-z][\w.+-]+):(.*)", re.DOTALL)  # two letters at least: C:\net.onnx is a path
_ESCAPED = {"%": "%25", "&": "%26", "\n": "%0A", "\r": "%0D"}


@dataclass(frozen=True)
class Spec:
    """A parsed spec. `source` is a key of SOURCES, a value of PROGRAMS, or "" for a bare name yet to be looked up.

    `str()` gives the canonical text, which parses to the same spec.
    """

    source: str
    id: str
    revision: str = ""
    options: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        prefix = f"{self.source}:" if self.source in SOURCES else ""
        revision = f"@{self.revision}" if self.revision else ""
        pairs = "&".join(f"{name}={_escape(self.options[name])}" for name in OPTIONS if name in self.options)
        return f"{prefix}{self.id}{revision}{'?' if pairs else ''}{pairs}"

    @property
    def name(self) -> str:
        """The text without its options, for messages."""
        return str(Spec(self.source, self.id, self.revision))

    def read(self) -> Options:
        """The options' values. Raises XaiError for a value that its option cannot take."""
        return Options(**{name: OPTIONS[name].parse(name, value) for name, value in self.options.items()})


@dataclass(frozen=True)
class Options:
    """What a spec overrides; None (or "auto") where it says nothing."""

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    range: tuple[float, float] | None = None
    resize: int | None = None
    crop: str | None = None
    interpolation: str | None = None
    labels: str | None = None
    output: str | None = None
    layer: str = "auto"
    grid: tuple[int, int] | None = None
    head: str | None = None
    channels: int | None = None
    classes: int | None = None


@dataclass(frozen=True)
class Option:
    """One option: how its text is read, and what a value looks like."""

    read: Callable[[str], Any]
    expected: str
    example: str

    def parse(self, name: str, text: str) -> Any:
        """The value, or XaiError."""
        try:
            return self.read(text.strip())
        except ValueError as problem:
            raise error(
                f"the option {name}", self.expected, repr(text), f"Write for example ?{name}={self.example}"
            ) from problem


def parse(text: str) -> Spec:
    """Read a spec. Raises XaiError where it is empty, or its source or an option is unknown."""
    body, _, query = text.strip().partition("?")
    if not body:
        raise error(
            "the model",
            "a spec such as resnet50, timm:vit_tiny_patch16_224 or net.onnx",
            repr(text),
            "`xai models list` names them",
        )
    source, name = _source(body)
    at, revision = "", ""
    if source in REVISED and "@" in name and not name.startswith((".", "/", "~")):
        name, at, revision = name.rpartition("@")
    if not name or bool(at) != bool(revision):
        expected = "a source and an id, such as torchvision:resnet50 or hf:owner/name@revision"
        raise error("the model", expected, repr(text), "`xai models list` names them")
    return Spec(source, name, revision, _options(query))


def _source(body: str) -> tuple[str, str]:
    found = _SCHEME.fullmatch(body)
    if found and found[1].lower() in SOURCES:
        return found[1].lower(), found[2]
    suffix = PurePath(body).suffix.lower()
    if suffix in PROGRAMS:
        return PROGRAMS[suffix], body
    if found and found[1].endswith(".py"):
        raise error("the model", "file:FILE.py:NAME for your own code", repr(body), f"Write file:{body}")
    if found and not re.search(r"[\\/]", found[1]):
        known = ", ".join(SOURCES)
        raise error(
            "the source of a model",
            f"one of {known}",
            repr(found[1]),
            did_you_mean(found[1], SOURCES) or f"Write one of {known}",
        )
    if suffix in WEIGHT_FILES:
        raise error(
            "the model",
            "an architecture or a program (.pt2, .ts, .onnx)",
            f"the weight file {body!r}",
            f"Name the architecture and give the file beside it: --model resnet50 --weights {body}",
        )
    return "", body


def _options(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, equals, value = pair.partition("=")
        if name not in OPTIONS:
            raise error(
                "an option of a model spec",
                f"one of {', '.join(OPTIONS)}",
                repr(name),
                did_you_mean(name, OPTIONS) or "Write ?name=value&name=value",
            )
        if not equals or not value.strip():
            raise error(
                f"the option {name}", OPTIONS[name].expected, "no value", f"Write ?{name}={OPTIONS[name].example}"
            )
        if name in found:
            raise error(f"the option {name}", "given once", "several times", "Keep one of them")
        found[name] = unquote(value)
    return found


def _escape(value: str) -> str:
    return "".join(_ESCAPED.get(letter, letter) for letter in value)


def _whole(text: str) -> int:
    value = int(text)
    if value < 1 or not text.isdecimal():
        raise ValueError(text)
    return value


def _pair(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    return _whole(height), _whole(width if "x" in text.lower() else height)


def _both(text: str) -> tuple[int, int]:
    if "x" not in text.lower():
        raise ValueError(text)
    return _pair(text)


def _numbers(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if not all(math.isfinite(value) for value in values):
        raise ValueError(text)
    return values


def _range(text: str) -> tuple[float, float]:
    found = re.fullmatch(r"(-?[\d.]+)\s*[-,:]\s*(-?[\d.]+)", text)
    if not found or not float(found[1]) < float(found[2]):
        raise ValueError(text)
    return float(found[1]), float(found[2])


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return read


OPTIONS: dict[str, Option] = {
    "size": Option(_pair, "the input's height x width in pixels, or one number", "224"),
    "mean": Option(_numbers, "numbers, one a channel", "0.485,0.456,0.406"),
    "std": Option(_numbers, "numbers, one a channel", "0.229,0.224,0.225"),
    "range": Option(_range, "what black and white are mapped to before mean and std", "0-255"),
    "resize": Option(_whole, "the short side in pixels before the crop", "256"),
    "crop": Option(_one_of("center", "squash"), "center or squash", "center"),
    "interpolation": Option(_one_of("bilinear", "bicubic", "nearest"), "bilinear, bicubic or nearest", "bilinear"),
    "labels": Option(str, "a file of class names, or imagenet", "names.txt"),
    "output": Option(str, "the place of the answer in what the network returns", "logits"),
    "layer": Option(str, "a module of the network", "layer4"),
    "grid": Option(_both, "rows x columns of a transformer's patches", "14x14"),
    "head": Option(str, "what the output is", "classes"),
    "channels": Option(_whole, "the number of input channels", "1"),
    "classes": Option(_whole, "the number of outputs", "10"),
}


def refuse_options(spec: Spec, names: tuple[str, ...], why: str) -> None:
    """Raise XaiError if the spec carries an option that its source cannot honour."""
    for name in names:
        if name in spec.options:
            raise XaiError(f"The option {name} must be left out for {spec.name}; got {spec.options[name]!r}. {why}.")
