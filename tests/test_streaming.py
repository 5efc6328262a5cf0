"""Sums over blocks of pictures: which pictures go in, in which order, and how parts come together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from torch import Tensor, nn

from xai.errors import XaiError
from xai.images import Image, Images, load_images
from xai.model import Model
from xai.panels import AnyPanel, Number, Text
from xai.result import Verdict
from xai.streaming import Block, Left, State, Streaming, blocks
from xai.subject import Subject


class Mean(nn.Module):
    """The mean of the picture as the score of the first of two classes."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1, keepdim=True)
        return torch.cat([mean, -mean], 1)


@dataclass(frozen=True)
class Total(Streaming):
    """The sum of every model's inputs over the data, and of its squares in a second pass.

    Reads nothing else.
    """

    block: ClassVar[int] = 4
    stages: ClassVar[int] = 2
    fewest: ClassVar[int] = 3

    def start(self, subject: Subject) -> State:
        return {"sum": np.zeros((2, len(subject.models))), "seen": np.zeros((2, len(subject.models)), np.int64)}

    def update(self, state: State, block: Block, stage: int) -> None:
        for m, batches in enumerate(block.batches):
            for batch in batches:
                state["sum"][stage, m] += float((batch.inputs.double() ** (stage + 1)).sum())
                state["seen"][stage, m] += len(batch)

    def merge(self, states: Sequence[State]) -> State:
        return {key: np.sum([state[key] for state in states], axis=0) for key in states[0]}

    def panels(self, subject: Subject, state: State) -> Iterator[AnyPanel | Verdict]:
        for stage, m in np.ndindex(*state["sum"].shape):
            yield Number(key=f"{stage} {m}", title="sum", value=float(state["sum"][stage, m]),
                         unit=str(state["seen"][stage, m]))


def model(channels: int = 3, size: int = 6) -> Model:
    return Model(Mean(), mean=[0.0] * channels, std=[1.0] * channels, size=size)


def pictures(*channels: int, names: Sequence[str] = ()) -> Images:
    """Noise of so many channels each."""
    rng = np.random.default_rng(0)
    return Images.of(Image.of(names[i] if names else f"{i}", rng.random((c, 6, 6), dtype=np.float32))
                     for i, c in enumerate(channels))


def test_a_picture_that_one_model_cannot_use_is_left_out_for_both() -> None:
    images = pictures(3, 1, 3, 3, 1, 1, 3, 1)  # a model of two channels takes grey ones, not those of three
    left = Left()
    found = list(blocks(Subject((model(3), model(2)), images), 4, left))
    assert [block.names for block in found] == [("1",), ("4", "5", "7")]
    assert [block.first for block in found] == [0, 4]
    for block in found:
        for batches in block.batches:
            assert [image.name for batch in batches for image in batch.images] == list(block.names)
        one, two = (torch.cat([b.inputs for b in batches]) for batches in block.batches)
        assert torch.equal(one[:, :2], two)
    assert sorted(left.pictures) == [0, 2, 3, 6]
    assert all("of 2 channels" in why for _, why in left.pictures.values())
    assert "(4)" in left.panel().title


def test_of_two_pictures_of_one_name_only_the_unfit_one_is_left_out() -> None:
    left = Left()
    block, = blocks(Subject((model(3), model(2)), pictures(1, 3, 1, names=["a", "a", "a"])), 4, left)
    assert len(block) == 2
    assert sorted(left.pictures) == [1]


def test_a_file_that_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    for i in range(4):
        Pil.fromarray(np.full((6, 6, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    panels = Total()(Subject((model(),), load_images(str(tmp_path)))).panels
    assert [p.unit for p in panels if isinstance(p, Number)] == ["3", "3"]
    said, = (p for p in panels if isinstance(p, Text))  # once, though it was met in both passes
    assert "(1)" in said.title
    assert "2.png" in said.text


def test_every_pass_sums_all_pictures_once() -> None:
    images = pictures(*[3] * 10)
    panels = Total()(Subject((model(), model(size=3)), images)).panels
    values = np.array([p.value for p in panels if isinstance(p, Number)]).reshape(2, 2)
    x = np.stack([image.pixels for image in images]).astype(np.float64)
    np.testing.assert_allclose(values[:, 0], [x.sum(), (x**2).sum()], rtol=1e-6)
    small = torch.stack([model(size=3).preprocessing(image).input for image in images]).double()
    np.testing.assert_allclose(values[:, 1], [float(small.sum()), float((small**2).sum())], rtol=1e-6)


@pytest.mark.parametrize("parts", [[[0], [1], [2]], [[0, 1], [2]], [[0], [1, 2]], [[], [0, 1, 2]]])
def test_merging_parts_in_order_equals_one_pass(parts: list[list[int]]) -> None:
    subject, method = Subject((model(), model(size=3)), pictures(*[3] * 10)), Total()
    whole = method.start(subject)
    states = []
    for stage in range(2):
        for block in blocks(subject, 4, Left()):
            method.update(whole, block, stage)
    for numbers in parts:
        state = method.start(subject)
        for stage in range(2):
            for block in blocks(subject, 4, Left(), numbers):
                assert block.first // 4 in numbers
                method.update(state, block, stage)
        states.append(state)
    merged = method.merge(states)
    assert np.array_equal(merged["seen"], whole["seen"])
    np.testing.assert_allclose(merged["sum"], whole["sum"], rtol=1e-14)


def test_too_few_pictures_and_none_that_fits_give_sentences() -> None:
    with pytest.raises(XaiError, match=r"must be at least 3; got 2\. Name a folder"):
        Total()(Subject((model(),), pictures(3, 3)))
    with pytest.raises(XaiError, match=r"must be at least 3; got none"):
        Total()(Subject((model(),)))
    with pytest.raises(XaiError, match="of 2 channels"):
        Total()(Subject((model(2),), pictures(3, 3, 3)))
    assert list(blocks(Subject((model(2),), pictures(3, 3, 3)), 2, Left(), [1])) == []  # a part may be empty
