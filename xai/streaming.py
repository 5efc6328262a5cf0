"""Analyzers that read a data set block by block and keep only sums: their memory does not grow with the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from xai.analyzer import Analyzer
from xai.batch import Batch
from xai.errors import XaiError, error
from xai.images import Images
from xai.panels import AnyPanel, Text
from xai.result import Verdict
from xai.subject import Subject

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Block:
    """A run of pictures, the same for every model: `first`, the place of its first picture in the data set; `names`;
    `batches[m]`, those of model m, which between them hold all of its pictures in order."""

    first: int
    names: tuple[str, ...]
    batches: tuple[tuple[Batch, ...], ...]

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class Left:
    """Pictures that could not be used by every model, and why."""

    names: dict[str, str] = field(default_factory=dict)

    def panel(self) -> Text:
        """One line for each, the first twenty."""
        lines = [f"{name}: {why}" for name, why in list(self.names.items())[:20]]
        more = f" And {len(self.names) - 20} more." if len(self.names) > 20 else ""
        return Text(key="left", title=f"Pictures that were left out ({len(self.names)})", tone="warning",
                    text=" ".join(lines) + more)


@dataclass(frozen=True)
class Streaming(Analyzer):
    """An analyzer that is sums over blocks of pictures. `stages`: passes over the data; `block`: pictures in a block,
    part of the method and never changed by a memory budget (a model may run it in smaller forwards)."""

    stages: ClassVar[int] = 1
    block: ClassVar[int] = 32

    def start(self, subject: Subject) -> State:
        """The sums of no picture."""
        raise error(f"the method {self.name()}", "one that says what it sums", "an abstract one",
                    "Use one from `xai methods list`")

    def update(self, state: State, block: Block, stage: int) -> None:
        """Add a block to the sums, in place."""
        raise NotImplementedError

    def merge(self, states: Sequence[State]) -> State:
        """The sums of all parts, in the order given."""
        raise NotImplementedError

    def panels(self, subject: Subject, state: State) -> Iterator[AnyPanel | Verdict]:
        """What the sums say."""
        raise NotImplementedError

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """All stages over all blocks, then the panels. Raises XaiError where no picture can be used."""
        if subject.images is None or not len(subject.images):
            raise error(f"the pictures for {self.name()}", "given", "none", "Name a folder or a data set with --data")
        state, left = self.start(subject), Left()
        for stage in range(self.stages):
            for block in blocks(subject, self.block, left):
                self.update(state, block, stage)
        yield from self.panels(subject, state)
        if left.names:
            yield left.panel()


def blocks(subject: Subject, size: int, left: Left) -> Iterator[Block]:
    """The data set in runs of `size` pictures (the last is shorter). A picture that one model cannot use is left out
    for all, and noted in `left`. Raises XaiError if none is usable."""
    images = subject.images
    assert images is not None
    found = 0
    for first in range(0, len(images), size):
        block = _block(subject, images[first : first + size], first, left)
        if len(block):
            found += len(block)
            yield block
    if not found:
        raise XaiError(next(iter(left.names.values()), "No picture could be used."))


def _block(subject: Subject, images: Images, first: int, left: Left) -> Block:
    read = []
    for i, name in enumerate(images.names):
        try:
            read.append(images[i])
        except XaiError as problem:
            left.names[name] = str(problem)
    while True:
        bad: dict[str, str] = {}
        batches = tuple(tuple(model.prepare(Images.of(read, images.label_names), seed=subject.seed,
                                            memory_bytes=subject.memory_bytes, bad=bad.__setitem__))
                        for model in subject.models)
        if not bad:
            return Block(first, tuple(image.name for image in read), batches)
        left.names.update(bad)
        read = [image for image in read if image.name not in bad]
