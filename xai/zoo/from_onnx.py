"""ONNX models by onnxruntime on the CPU: forward only, for methods that need no gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xai.errors import error
from xai.model import Model
from xai.preprocessing import Preprocessing
from xai.zoo.from_export import check_program
from xai.zoo.request import Request, unknown_preprocessing
from xai.zoo.state_dicts import file_hash

DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}


def load(request: Request) -> Model:
    """The model in a file. Raises XaiError where onnxruntime is missing or cannot run it, or it takes no pictures."""
    path = Path(request.spec.id).expanduser()
    check_program(request, path)
    session = _session(path)
    runner = Runner(session, _endings(path), path)
    notes = ["ONNX: no gradients and no layers, only forwards, on the CPU", *runner.notes]
    head = "multi-label" if set(runner.endings.values()) == {"Sigmoid"} else None
    on_cpu = Request(request.spec, None, "cpu", request.precision, request.seed)
    return on_cpu.model(
        None,
        forward=runner,
        preprocessing=_preprocessing(path, session.get_inputs()[0].shape),
        weights=f"in the program {path.name} (sha256 {file_hash(path)})",
        weights_hash=file_hash(path),
        capabilities=("forward",),
        head=head,
        notes=notes,
    )


def _session(path: Path) -> Any:
    try:
        import onnx  # noqa: F401  # asked for here, so that one sentence names what is missing
        import onnxruntime
    except ImportError as problem:
        raise error(
            "an .onnx model",
            "run by onnxruntime",
            f"no package {problem.name}",
            "Install it with pip install 'xai-toolkit[onnx]'",
        ) from problem
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # onnxruntime's errors have no common type of their own
        first = str(problem).strip().splitlines()[0][:200]
        raise error(
            "the model", "an ONNX file that onnxruntime can run", f"{path} ({first})", "Export it again"
        ) from problem
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in DTYPES:
        got = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise error(
            "the input of the model",
            "one batch of pictures (n, C, H, W) in floating point",
            f"{path.name} with {got}",
            "Export the network so that it takes pictures alone",
        )
    return session


def _endings(path: Path) -> dict[str, str]:
    """Softmax or Sigmoid by the name of the output that it makes."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    outputs = {output.name for output in graph.output}
    return {
        name: node.op_type
        for node in graph.node
        for name in node.output
        if name in outputs and node.op_type in ("Softmax", "Sigmoid")
    }


class Runner:
    """(n, C, H, W) to the model's output, or to a dict of them by name where it has several.

    Probabilities are turned back into logits (the logarithm, or the logit of a sigmoid), which is what a Model gives.
    """

    def __init__(self, session: Any, endings: dict[str, str], path: Path) -> None:
        self.session, self.endings = session, endings
        given = session.get_inputs()[0]
        self.input, self.dtype = given.name, DTYPES[given.type]
        self.batch = given.shape[0] if isinstance(given.shape[0], int) else None
        self.outputs = [output.name for output in session.get_outputs()]
        self.notes = [
            f"the output {name} ends in a {kind}: its {'logarithm' if kind == 'Softmax' else 'logit'} is used as scores"
            for name, kind in endings.items()
        ]
        if self.batch is not None:
            self.notes.append(f"exported for a batch of {self.batch}: run {self.batch} by {self.batch}")
        if self.dtype == torch.float16:
            self.notes.append("takes float16: outputs carry three digits")

    def __call__(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """All pictures, in pieces of the size that the graph takes, the last one filled up."""
        pieces = [self._run(piece) for piece in (torch.split(x, self.batch) if self.batch else [x])]
        whole = {name: torch.cat([piece[name] for piece in pieces]).to(x.dtype) for name in pieces[0]}
        return whole if len(whole) > 1 else next(iter(whole.values()))

    def _run(self, piece: Tensor) -> dict[str, Tensor]:
        count = len(piece)
        if self.batch and count < self.batch:
            piece = torch.cat([piece, piece[-1:].expand(self.batch - count, -1, -1, -1)])
        try:
            found = self.session.run(None, {self.input: piece.to("cpu", self.dtype).numpy()})
        except Exception as problem:  # onnxruntime's errors have no common type of their own
            first = next((line for line in str(problem).splitlines() if line.strip()), "")[:300]
            raise error(
                "the input",
                "one that the ONNX model can run",
                f"{tuple(piece.shape)}: {first}",
                "Check size and channels: ?size= and ?channels= on the spec",
            ) from problem
        return {
            name: self._logits(name, torch.from_numpy(value).float())[:count]
            for name, value in zip(self.outputs, found, strict=True)
            if hasattr(value, "dtype") and value.dtype.kind == "f"
        }

    def _logits(self, name: str, values: Tensor) -> Tensor:
        if self.endings.get(name) == "Softmax":
            return values.clamp_min(torch.finfo(torch.float32).tiny).log()
        return torch.logit(values, eps=1e-7) if self.endings.get(name) == "Sigmoid" else values


def _preprocessing(path: Path, shape: list[Any]) -> Preprocessing:
    _, channels, height, width = (value if isinstance(value, int) else None for value in shape)
    return unknown_preprocessing(path.name, (height, width) if height and width else None, channels)
