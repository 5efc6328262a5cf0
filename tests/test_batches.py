"""Batches of a model: streamed in chunks that fit, in order, with seeds that know no batch, and one forward for all."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from xai import catalog
from xai.attribution import Attribution
from xai.errors import XaiError
from xai.image_sources import Entry, Raw
from xai.images import Images, load_images
from xai.model import MAX_CHUNK, Model
from xai.targets import Target


def model() -> Model:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))  # fmt: skip
    return Model(net, mean=[0.5], std=[0.2], size=16)


def pixels(n: int) -> Tensor:
    """(n, 3, 16, 16) uint8."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, 16, 16), np.uint8))


class Counted:
    """Images that count what was loaded and what of it is still held."""

    def __init__(self, n: int, bad: tuple[int, ...] = ()) -> None:
        self.loads: list[int] = []
        self.held: list[weakref.ref[np.ndarray]] = []
        self.bad = bad
        self.images = Images(Entry(f"picture {i}", lambda i=i: self.read(i)) for i in range(n))

    def read(self, i: int) -> Raw:
        self.loads.append(i)
        if i in self.bad:
            raise XaiError(f"picture {i} is bad.")
        values = np.full((3, 16, 16), i, np.uint8)
        self.held.append(weakref.ref(values))
        return Raw(values)


def test_batches_stream_and_hold_no_more_than_a_chunk() -> None:
    source, seen = Counted(23), 0
    for batch in model().prepare(source.images, chunk=5):
        seen += len(batch)
        assert source.loads == list(range(min(23, seen + 1)))  # one ahead: its shape decides whether it joins
        assert batch.inputs.shape[0] == len(batch) <= 5
        del batch
        gc.collect()
        assert sum(one() is not None for one in source.held) <= 5 + 1
    assert seen == 23


def test_nothing_is_loaded_before_the_first_batch_is_asked_for() -> None:
    source = Counted(9)
    batches = model().prepare(source.images, chunk=2)
    assert source.loads == []
    next(batches)
    assert len(source.loads) == 3


@pytest.mark.parametrize(("n", "chunk", "sizes"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2]), (40, None, [32, 8])])
def test_pictures_come_in_order_in_batches_of_the_chunk(n: int, chunk: int | None, sizes: list[int]) -> None:
    batches = list(model().prepare(Counted(n).images, chunk=chunk))
    assert [len(batch) for batch in batches] == sizes
    assert [i.name for batch in batches for i in batch.images] == [f"picture {k}" for k in range(n)]


def test_the_chunk_obeys_the_memory_budget_and_is_32_at_most() -> None:
    own = model()
    sizes = [own.chunk(memory_bytes) for memory_bytes in (1, 400_000, 800_000, 1 << 30, 1 << 50)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, MAX_CHUNK)
    assert 1 < sizes[1] < sizes[2] < 32
    assert sizes[2] // sizes[1] == 2
    assert [len(b) for b in own.prepare(Counted(4).images, memory_bytes=1)] == [1] * 4
    assert Model(forward=lambda x: x.mean((2, 3)), size=16).chunk() == 8


def test_bad_pictures_are_named_and_left_out() -> None:
    said: list[tuple[str, str]] = []
    source = Counted(6, bad=(0, 3))
    batches = list(model().prepare(source.images, chunk=3, bad=lambda *pair: said.append(pair)))
    assert [[i.name for i in b.images] for b in batches] == [["picture 1", "picture 2", "picture 4"], ["picture 5"]]
    assert said == [("picture 0", "picture 0 is bad."), ("picture 3", "picture 3 is bad.")]
    with pytest.raises(XaiError, match="picture 3 is bad"):
        list(model().prepare(Counted(6, bad=(3,)).images))


def test_pictures_of_other_channels_are_bad_for_this_model() -> None:
    said: list[tuple[str, str]] = []
    mixed = load_images(pixels(1)) + load_images(torch.zeros(5, 8, 8, dtype=torch.uint8)) + load_images(pixels(2)[1])
    assert [len(b) for b in model().prepare(mixed, bad=lambda *pair: said.append(pair))] == [2]
    assert len(said) == 1
    assert "must be of 3 channels, as the model takes; got 5" in said[0][1]


def test_normalised_tensors_of_several_sizes_are_batched_by_size() -> None:
    sizes = (16, 16, 20, 20, 20, 16)
    images = load_images([torch.randn(3, s, s) for s in sizes], normalised=True)
    assert [tuple(b.inputs.shape) for b in model().prepare(images)] == [(2, 3, 16, 16), (3, 3, 20, 20), (1, 3, 16, 16)]


def test_random_numbers_depend_on_picture_seed_and_method_alone() -> None:
    def drawn(order: list[int], chunk: int, seed: int = 0, method: str = "rise") -> dict[str, Tensor]:
        batches = model().prepare(load_images(pixels(4)[order]), chunk=chunk, seed=seed)
        return {b.hashes[i]: torch.rand(5, generator=b.generator(i, method)) for b in batches for i in range(len(b))}

    one = drawn([0, 1, 2, 3], 4)
    assert len(one) == 4
    for order, chunk in (([3, 1, 0, 2], 4), ([2, 3, 1, 0], 1), ([1, 0, 3, 2], 3)):
        assert_close(drawn(order, chunk), {digest: one[digest] for digest in drawn(order, chunk)}, rtol=0, atol=0)
    for other in (drawn([0, 1, 2, 3], 4, seed=1), drawn([0, 1, 2, 3], 4, method="lime")):
        assert not any(torch.equal(one[digest], other[digest]) for digest in one)
    values = list(one.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])


def test_all_cams_share_one_forward() -> None:
    """However many methods read a layer, each picture goes through the network once."""
    names = [n for n, e in catalog.entries().items() if e.kind == "attribution" and "hooks" in e.needs
             and any(f.name == "layer" for f in e.fields) and not catalog.find(n).shares
             and catalog.find(n)().passes(model()).forwards == 0]  # fmt: skip
    assert len(names) >= 6
    own, calls = model(), list[int]()
    for module in {own.fast.module, own.runner([own.view().name])}:
        module.register_forward_hook(lambda m, inputs, output: calls.append(len(inputs[0])))
    before = own.cost.forwards
    for batch in own.prepare(load_images(pixels(4)), chunk=2):
        batch.want("auto")
        for name in names:
            analyzer = catalog.find(name)()
            assert isinstance(analyzer, Attribution)
            assert len(analyzer.maps(batch, batch.bind(Target("top1"))).values) == 2
    assert calls == [2, 2]
    assert own.cost.forwards - before == 4
