"""The user's own code: `file:net.py:make` and `py:package.module:factory`, a network or a function that returns one."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from xai.errors import XaiError, did_you_mean, error
from xai.model import Model
from xai.preprocessing import Preprocessing
from xai.zoo.request import Request, overridden, read_labels, unknown_preprocessing
from xai.zoo.spec import refuse_options
from xai.zoo.state_dicts import file_hash


def load(request: Request) -> Model:
    """The network that the code makes. Raises XaiError, with the code's own error where that fails."""
    spec = request.spec
    refuse_options(spec, ("classes",), "The code decides how many outputs there are")
    where, _, name = spec.id.rpartition(":")
    if not where or not name:
        shape = "file:FILE.py:NAME" if spec.source == "file" else "py:MODULE:NAME"
        raise error(
            "the model", f"{shape}, NAME being a network or a function that returns one", repr(str(spec)), "Add :NAME"
        )
    folder = Path(where).expanduser().resolve().parent if spec.source == "file" else Path.cwd()
    with importable(folder):
        module = _told(spec.name, lambda: _file(where) if spec.source == "file" else importlib.import_module(where))
        made = request.seeded(lambda: _told(spec.name, lambda: _make(module, name)))
    notes = [f"the user's own code was run: {spec.name}"]
    if spec.source == "file":
        notes.append(f"{Path(where).name} has the sha256 {file_hash(Path(where).expanduser())}")
    if isinstance(made, Model):
        return _adopted(request, made, notes)
    if not isinstance(made, nn.Module):
        raise error(
            f"what {name} returns", "a torch.nn.Module or an xai.Model", type(made).__name__, "Return the network"
        )
    weights = "as the code made them"
    if request.random:
        weights, told = _reset(request, made)
        notes += told
    elif request.weights is not None:
        weights, told = request.fill(made)
        notes += told
    return request.model(
        made, preprocessing=_preprocessing(made, spec.name), weights=weights, runs_code=True, notes=notes
    )


def _file(where: str) -> ModuleType:
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise error("the model's code", "a Python file that exists", where, "Check the path")
    name = f"xai_model_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error("the model's code", "a Python file, ending in .py", where, "Rename it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _make(module: ModuleType, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n, value in vars(found).items() if callable(value) and not n.startswith("_")]
            do = did_you_mean(part, known) or "Name a function that returns the network"
            raise error(
                "the name after the last colon",
                f"one that {module.__file__ or module.__name__} defines",
                repr(part),
                do,
            )
        found = getattr(found, part)
    if isinstance(found, nn.Module | Model):
        return found
    if not callable(found):
        raise error(
            f"{name} of the model's code",
            "a network or a function that returns one",
            type(found).__name__,
            "Name another",
        )
    return found()


def _told(what: str, run: Any) -> Any:
    """What `run` returns; an error of the user's code becomes one sentence that names its place."""
    try:
        return run()
    except (XaiError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as problem:
        last = traceback.extract_tb(problem.__traceback__)[-1]
        first = (str(problem).strip().splitlines() or [""])[0][:200]
        raise error(
            f"the code of {what}",
            "one that runs",
            f"{type(problem).__name__}: {first} ({Path(last.filename).name}, line {last.lineno})",
            "Correct it, or check that what it imports is installed",
        ) from problem


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Modules beside the user's file can be imported, as if it were run as a script."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _reset(request: Request, network: nn.Module) -> tuple[str, list[str]]:
    """Initial weights, drawn from the seed, for every part that knows how to draw them; the others are named."""

    def draw() -> list[str]:
        left = []
        for name, part in network.named_modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
            else:
                left += [f"{name}.{n}" for n, _ in part.named_parameters(recurse=False)]
        return left

    left = request.seeded(draw)
    weights, notes = request.fill(network)
    if left:
        notes.append(
            f"{len(left)} parameters stay as the code made them, having no reset_parameters(): {', '.join(left[:3])}"
        )
    return weights, notes


def _preprocessing(network: nn.Module, what: str) -> Preprocessing:
    first = next((part for part in network.modules() if isinstance(part, nn.Conv2d)), None)
    found = unknown_preprocessing(what, None, first.in_channels if first else None)
    said = f"; {first.in_channels} channels, as its first convolution takes" if first else ""
    return found.with_options(reason=found.reason + said)


def _adopted(request: Request, made: Model, notes: list[str]) -> Model:
    """A Model that the code made, with the spec's overrides."""
    if request.weights is not None:
        raise error(
            "--weights",
            "left out where the code returns a finished xai.Model",
            request.weights,
            "Let it return the network alone",
        )
    options = request.options
    made.preprocessing = overridden(made.preprocessing, options)
    if options.labels is not None:
        made.labels = read_labels(options.labels)
    for name in ("layer", "grid", "head", "output"):
        if name in request.spec.options:
            made.options[name] = getattr(options, name)
    made.spec, made.runs_code = str(request.spec), True
    made.notes += notes
    if request.device != "auto" or request.precision is not None:
        made.device, made.dtype = made._placed(request.device, request.precision)
    return made
