"""What an analyzer is: a method whose fields are its parameters, and a door that checks, counts, times and records."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from xai.errors import error
from xai.model import Model
from xai.panels import AnyPanel
from xai.provenance import peak_memory, provenance
from xai.result import Cost, Result, Verdict
from xai.subject import Subject

Progress = Callable[[int, int], None]  # what is done, of how much: in forwards, a backward counted as two


def param(default: Any, help: str, *, choices: Sequence[Any] | None = None, low: float | None = None,
          high: float | None = None) -> Any:
    """A parameter of an analyzer: its default, one line of help, and what is allowed (checked when it is made)."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True)
class Passes:
    """Forwards and backwards for one picture, beyond the one common forward of its batch."""

    forwards: float = 0
    backwards: float = 0

    @property
    def work(self) -> float:
        """In forwards; a backward costs about two."""
        return self.forwards + 2 * self.backwards


@dataclass(frozen=True)
class Maps:
    """Raw maps (n, h, w), signed where the formula is, at the method's own resolution; error: their standard errors,
    (n, h, w); panels: further evidence, each naming its picture."""

    values: Tensor
    error: Tensor | None = None
    panels: tuple[AnyPanel, ...] = ()


@dataclass(frozen=True)
class Analyzer:
    """A method with its parameters as fields. `needs`: capabilities (gradients, hooks, forward) and data (images,
    labels, ...); `version` is raised when the numbers change. `shares`: one set of passes serves all targets. `upper`:
    the planned passes are the most that it takes, it may stop before. `explains`: the target where none is named.
    `fewest`: the pictures that it needs at least."""

    needs: ClassVar[frozenset[str]] = frozenset()
    version: ClassVar[int] = 1
    shares: ClassVar[bool] = False
    upper: ClassVar[bool] = False
    explains: ClassVar[str] = "top1"
    fewest: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, allowed = getattr(self, f.name), f.metadata
            if allowed.get("choices") and value not in allowed["choices"]:
                raise error(f"{self.name()}.{f.name}", f"one of {', '.join(map(str, allowed['choices']))}", repr(value),
                            f"It is {allowed['help']}")
            if isinstance(value, float) and not math.isfinite(value):
                raise error(f"{self.name()}.{f.name}", "a finite number", value, f"It is {allowed['help']}")
            low, high = allowed.get("low"), allowed.get("high")
            if isinstance(value, (int, float)) and ((low is not None and value < low)
                                                    or (high is not None and value > high)):
                limits = " and ".join(f"at {w} {b}" for w, b in (("least", low), ("most", high)) if b is not None)
                raise error(f"{self.name()}.{f.name}", limits, value, f"It is {allowed['help']}")

    @classmethod
    def name(cls) -> str:
        """The name on the command line and in the record: that of the file."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def title(cls) -> str:
        """The heading: the docstring up to its first colon or stop."""
        first = (inspect.getdoc(cls) or cls.__name__).splitlines()[0]
        return first.split(":")[0].rstrip(".")

    @classmethod
    def section(cls, word: str) -> str:
        """What the docstring says under Reads, Yields, Raises, Cost or Reference; "" where it says nothing."""
        lines = (inspect.getdoc(cls) or "").splitlines()
        start = next((i for i, line in enumerate(lines) if line.startswith(f"{word} ")), None)
        if start is None:
            return ""
        more = []
        for line in lines[start + 1 :]:
            if not line.startswith("  "):
                break
            more.append(line.strip())
        return " ".join([lines[start][len(word) :].strip(), *more])

    def parameters(self) -> dict[str, Any]:
        """The fields as plain data."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def passes(self, model: Model) -> Passes:
        """What one picture costs on that model beyond its batch's common forward."""
        return Passes()

    def cost(self, subject: Subject) -> Cost:
        """Planned passes for a subject, in pictures."""
        pictures, times = len(subject.images or ()), 1 if self.shares else len(subject.targets)
        each = [self.passes(model) for model in subject.models]
        return Cost(forwards=round(sum(pictures * (1 + per.forwards * times) for per in each)),
                    backwards=round(sum(pictures * per.backwards * times for per in each)))

    def check(self, model: Model) -> None:
        """Raise XaiError where the model cannot do what the method needs."""
        for capability in sorted(self.needs & {"gradients", "hooks", "forward"}):
            model.need(capability)

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """The panels of this analysis, and its verdicts; written by each analyzer that is no attribution."""
        raise error(f"the method {self.name()}", "one with its own run", "an abstract one",
                    "Use an analyzer from `xai methods list`")

    def __call__(self, subject: Subject, progress: Progress | None = None, command: str = "") -> Result:
        """Run on a subject and give the record. Raises XaiError for bad input."""
        for model in subject.models:
            self.check(model)
        started = time.perf_counter()
        before = [(m.cost.forwards, m.cost.backwards) for m in subject.models]
        work = self.cost(subject).work
        with torch.inference_mode(False), reported(subject.models, work, progress):  # the mode as in `attribute`
            found = tuple(self.run(subject))
        spent = [(m.cost.forwards - f, m.cost.backwards - b) for m, (f, b) in zip(subject.models, before, strict=True)]
        cost = Cost(forwards=sum(f for f, _ in spent), backwards=sum(b for _, b in spent),
                    seconds=time.perf_counter() - started, peak_memory=peak_memory())
        place = subject.models[0] if subject.models else None
        return Result(analyzer=self.name(), version=self.version, title=self.title(),
                      reference=self.section("Reference"), summary=self.section("Yields"), parameters=self.parameters(),
                      models=tuple(m.record(getattr(self, "layer", None)) for m in subject.models),
                      target=subject.targets[0].text, cost=cost,
                      panels=tuple(one for one in found if not isinstance(one, Verdict)),
                      verdicts=tuple(one for one in found if isinstance(one, Verdict)),
                      provenance=provenance(command, subject.seed, str(place.device) if place else "cpu",
                                            precision_name(place) if place else "float32"))


@contextlib.contextmanager
def reported(models: Sequence[Model], work: float, progress: Progress | None) -> Iterator[None]:
    """Tell `progress` after every pass of the models how much of the planned work is done."""
    if progress is None:
        yield
        return
    start, total = sum(model.cost.work for model in models), max(1, round(work))

    def told() -> None:
        progress(min(sum(model.cost.work for model in models) - start, total), total)

    for model in models:
        model.cost.told = told
    try:
        yield
    finally:
        for model in models:
            model.cost.told = None
    progress(total, total)


def precision_name(model: Model) -> str:
    """float32, bfloat16, ..."""
    return str(model.dtype).removeprefix("torch.")

