"""Programs with their weights: torch.export's .pt2, whose layers can be hooked, and TorchScript, where none can."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xai.errors import XaiError, error
from xai.model import Model
from xai.preprocessing import Preprocessing
from xai.zoo.native import restore_layers
from xai.zoo.request import Request, unknown_preprocessing
from xai.zoo.sealed import Sealed
from xai.zoo.spec import refuse_options
from xai.zoo.state_dicts import file_hash, is_exported, is_torchscript

LARGEST_BATCH = 32  # what a Model puts into one forward


def load(request: Request) -> Model:
    """The program in a file. Raises XaiError where the file is none, or takes anything but one batch of pictures."""
    spec = request.spec
    path = Path(spec.id).expanduser()
    check_program(request, path)
    if is_exported(path):
        network, preprocessing, notes = _exported(path)
    elif is_torchscript(path):
        network, preprocessing, notes = _scripted(path)
    else:
        raise _neither(path)
    hooks = not isinstance(network, Sealed)
    return request.model(
        network,
        preprocessing=preprocessing,
        weights=f"in the program {path.name} (sha256 {file_hash(path)})",
        weights_hash=file_hash(path),
        runs_code=True,
        capabilities=("forward", "gradients", "hooks") if hooks else ("forward", "gradients"),
        notes=notes,
    )


def check_program(request: Request, path: Path) -> None:
    """Raise XaiError where the file is not there, or weights or a number of classes are asked of a finished program."""
    if request.weights is not None:
        raise error("--weights", f"left out for {path.name}, which carries its own", request.weights, "Leave it out")
    refuse_options(request.spec, ("classes",), "The program's output is fixed")
    if not path.is_file():
        raise error("the model", "a file that exists", str(path), "Check the path")
    if not path.stat().st_size:
        raise error("the model", "a program", f"the empty file {path}", "Export it again")


def _neither(path: Path) -> XaiError:
    if path.suffix.lower() == ".pt":
        do = f"For a state dict name its architecture and give the file beside it: --model resnet50 --weights {path}"
    else:
        do = "Save it with torch.export.save (.pt2), or give --model ARCHITECTURE --weights FILE for a state dict"
    return error("the model", "a program of torch.export or TorchScript", f"{path}, which is neither", do)


def _exported(path: Path) -> tuple[nn.Module, Preprocessing, list[str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the reader's own parts
            program = torch.export.load(str(path))
    except Exception as problem:  # the archive reader raises whatever its contents provoke
        raise _unreadable(path, problem) from problem
    shape = _input_shape(path, program)
    _refuse_training(path, program)
    preprocessing = _preprocessing(path, shape)
    batch, largest = shape[0], _largest_batch(program, shape[0])
    if isinstance(batch, int) or largest < LARGEST_BATCH:
        size = batch if isinstance(batch, int) else 1
        made_for = f"{batch}" if isinstance(batch, int) else f"at most {largest}"
        note = (
            f"exported for a batch of {made_for}: run {size} by {size}, "
            "and its layers cannot be reached (for that export with dynamic_shapes=({0: torch.export.Dim.AUTO},))"
        )
        return Sealed(program.module(check_guards=False), size), preprocessing, [note]
    network = torch.export.unflatten(program)
    for part in network.modules():
        graph = getattr(part, "graph", None)
        for node in graph.nodes if isinstance(graph, torch.fx.Graph) else ():
            node.meta.pop("val", None)  # symbolic sizes, with which the network could not be copied
    restore_layers(network)
    return network.eval(), preprocessing, []


def _input_shape(path: Path, program: torch.export.ExportedProgram) -> tuple[Any, ...]:
    names = program.graph_signature.user_inputs
    shapes = [
        tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names and hasattr(node.meta.get("val"), "shape")
    ]
    if len(names) != 1 or len(shapes) != 1 or len(shapes[0]) != 4:
        raise error(
            "the input of the program",
            "one batch of pictures (n, C, H, W)",
            f"{path.name} with inputs {list(names)} {shapes}",
            "Wrap the network before the export, so that it takes pictures alone",
        )
    return shapes[0]


def _largest_batch(program: torch.export.ExportedProgram, batch: Any) -> int:
    if isinstance(batch, int):
        return batch
    bounds = program.range_constraints.get(batch.node.expr)
    upper = getattr(bounds, "upper", None)
    return int(upper) if upper is not None and upper.is_Integer else LARGEST_BATCH


def _refuse_training(path: Path, program: torch.export.ExportedProgram) -> None:
    """Dropout and batch norm are baked in: in training mode the outputs would depend on chance and on the batch."""
    for node in program.graph.nodes:
        name = str(node.target)
        position = {"aten.dropout.default": 2, "aten.batch_norm.default": 5}.get(name)
        if position is not None and len(node.args) > position and node.args[position] is True:
            raise error(
                "the program",
                "exported in eval mode",
                f"{path.name} with {name.split('.')[1]} in training mode",
                "Call eval() on the network and export it again",
            )


def _scripted(path: Path) -> tuple[nn.Module, Preprocessing, list[str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated: the files are still there
        try:
            network: Any = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]  # torch's own gap
        except Exception as problem:  # a damaged archive raises one of many types
            raise _unreadable(path, problem) from problem
    if hasattr(network, "training"):
        network.eval()
    first = next((value for value in network.parameters() if value.ndim == 4), None)
    channels = None if first is None else first.shape[1]
    shape = ("n", channels or 3, "?", "?")
    notes = ["TorchScript: its layers cannot be reached, so methods that look at a layer do not work"]
    return Sealed(network), _preprocessing(path, shape), notes


def _preprocessing(path: Path, shape: tuple[Any, ...]) -> Preprocessing:
    """Input size and channels as the program fixes them; 224 and 3 where it does not."""
    _, channels, height, width = (value if isinstance(value, int) else None for value in shape)
    return unknown_preprocessing(path.name, (height, width) if height and width else None, channels)


def _unreadable(path: Path, problem: Exception) -> XaiError:
    first = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]
    return error(
        "the model",
        "a program that this version of torch can read",
        f"{path} ({first})",
        "Export it again with this version",
    )
