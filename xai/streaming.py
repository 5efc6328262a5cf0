"""Analyzers that read a data set block by block and keep only sums: their memory does not grow with the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from xai.analyzer import Analyzer
from xai.batch import Batch
from xai.errors import XaiError, error
from xai.images import Image, Images
from xai.model import Model
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
    """Pictures that could not be used by every model: by their place in the data set the name, and why."""

    pictures: dict[int, tuple[str, str]] = field(default_factory=dict)

    def add(self, name: str, why: str) -> None:
        """One more, after all others; the same of a second model counts once."""
        if (name, why) not in self.pictures.values():
            self.pictures[len(self.pictures)] = name, why

    @property
    def first(self) -> str:
        """Why the first of them was left out."""
        return next((why for _, why in self.pictures.values()), "No picture could be used.")

    def panel(self) -> Text:
        """One line for each, the first twenty."""
        lines = [f"{name}: {why}" for _, (name, why) in sorted(self.pictures.items())[:20]]
        more = f" And {len(self.pictures) - 20} more." if len(self.pictures) > 20 else ""
        return Text(key="left", title=f"Pictures that were left out ({len(self.pictures)})", tone="warning",
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
        """The sums of all parts, in the order given: what workers have summed, each over blocks of its own."""
        raise NotImplementedError

    def panels(self, subject: Subject, state: State) -> Iterator[AnyPanel | Verdict]:
        """What the sums say."""
        raise NotImplementedError

    def block_size(self, subject: Subject) -> int:
        """How many pictures a block holds: `block`, unless the method has a parameter for it."""
        return self.block

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """All stages over all blocks, then the panels. Raises XaiError where no picture can be used, or too few are
        given."""
        count = len(subject.images) if subject.images is not None else 0
        if count < self.fewest:
            raise error(f"the pictures for {self.name()}", f"at least {self.fewest}" if self.fewest > 1 else "given",
                        count or "none", "Name a folder or a data set with --data")
        state, left = self.start(subject), Left()
        for stage in range(self.stages):
            for block in blocks(subject, self.block_size(subject), left):
                self.update(state, block, stage)
        yield from self.panels(subject, state)
        if left.pictures:
            yield left.panel()


def blocks(subject: Subject, size: int, left: Left, numbers: Sequence[int] | None = None) -> Iterator[Block]:
    """The data set in runs of `size` pictures (the last is shorter), or those of its blocks that `numbers` names: a
    worker's part. A picture that one model cannot use is left out for all, and noted in `left`. Raises XaiError if none
    of the whole data set is usable."""
    images = subject.images
    assert images is not None
    found = 0
    for number in range(-(-len(images) // size)) if numbers is None else numbers:
        block = _block(subject, images[number * size : (number + 1) * size], number * size, left)
        if len(block):
            found += len(block)
            yield block
    if not found and numbers is None:
        raise XaiError(left.first)


def _block(subject: Subject, images: Images, first: int, left: Left) -> Block:
    read: dict[int, Image] = {}
    for i, name in enumerate(images.names, first):
        try:
            read[i] = images[i - first]
        except XaiError as problem:
            left.pictures[i] = name, str(problem)
    while True:
        bad: list[str] = []
        chosen = Images.of(read.values(), images.label_names)
        batches = tuple(tuple(model.prepare(chosen, seed=subject.seed, memory_bytes=subject.memory_bytes,
                                            bad=lambda name, _: bad.append(name)))  # noqa: B023  # called at once
                        for model in subject.models)
        if not bad:
            return Block(first, chosen.names, batches)
        for i, image in list(read.items()):
            if image.name in bad and (why := _unfit(subject.models, image)):
                left.pictures[i] = image.name, why
                del read[i]


def _unfit(models: Sequence[Model], image: Image) -> str:
    """Why one of the models cannot use a picture; "" where all can. Two pictures may bear the same name."""
    for model in models:
        try:
            model.preprocessing(image)
        except XaiError as problem:
            return str(problem)
    return ""
