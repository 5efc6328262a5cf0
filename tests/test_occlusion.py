"""Occlusion: closed forms on linear networks, an independent loop, captum's map, the same numbers near the patch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from analyzers.attribution import occlusion
from analyzers.attribution.occlusion import Occlusion, covers, starts
from tests.gradient_nets import EXACT, batch_of, close_to_scale, conv_net, linear_net, made, mapped, pictures
from tests.traced_nets import large, small
from xai.attribution import Attribution
from xai.baselines import of_inputs
from xai.batch import Batch
from xai.errors import OutOfMemory, XaiError
from xai.images import load_images
from xai.model import Model
from xai.reach import Patched, Reach
from xai.subject import Subject
from xai.targets import Target

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def slow(batch: Batch, i: int, target: int, window: int, stride: int, level: str = "zero",
         score: Any = lambda output: output) -> Tensor:
    """One whole forward a place, added up pixel by pixel."""
    x, model = batch.inputs[i], batch.model
    fill = of_inputs(x[None], model.preprocessing, level, "occlusion")[0]
    height, width = x.shape[-2:]
    total, count = torch.zeros(height, width, dtype=torch.float64), torch.zeros(height, width, dtype=torch.float64)
    here = score(model(x[None]))[0, target].double()
    tops = [*range(0, height - window, stride), height - window]
    lefts = [*range(0, width - window, stride), width - window]
    for top in tops:
        for left in lefts:
            hidden = x.clone()
            hidden[:, top : top + window, left : left + window] = fill[:, top : top + window, left : left + window]
            drop = here - score(model(hidden[None]))[0, target].double()
            total[top : top + window, left : left + window] += drop
            count[top : top + window, left : left + window] += 1
    return total / count


# --- linear networks ---
@pytest.mark.parametrize("level", ["zero", "black", "0.3", "blur"])
def test_a_patch_of_one_pixel_gives_weight_times_rise_on_a_linear_network(level: str) -> None:
    batch = batch_of(made(linear_net()), pictures(2))
    weight = batch.model._module[1].weight[1].view(3, 6, 6)  # type: ignore[index,operator]  # a Linear
    fill = of_inputs(batch.inputs, batch.model.preprocessing, level, "occlusion")
    expected = (weight * (batch.inputs - fill)).sum(1).detach()
    assert_close(mapped(Occlusion(window=1, stride=1, baseline=level), batch), expected, **EXACT)


def test_a_larger_patch_gives_the_mean_of_the_sums_over_the_patches_that_cover_a_pixel() -> None:
    batch = batch_of(made(linear_net()), pictures(1))
    weight = batch.model._module[1].weight[1].view(3, 6, 6)  # type: ignore[index,operator]  # a Linear
    rise = (weight * batch.inputs[0]).sum(0).detach()
    # window 4, stride 3: patches begin at 0 and at 2, moved back from 3
    sums = {(t, x): rise[t : t + 4, x : x + 4].sum() for t in (0, 2) for x in (0, 2)}
    found = mapped(Occlusion(window=4, stride=3), batch)[0]
    for y in range(6):
        for x in range(6):
            covering = [value for (t, l_), value in sums.items() if t <= y < t + 4 and l_ <= x < l_ + 4]
            assert_close(found[y, x], torch.stack(covering).mean(), **EXACT)


@settings(max_examples=200, deadline=None)
@given(side=st.integers(1, 60), data=st.data())
def test_every_pixel_is_covered_and_the_last_patch_ends_at_the_border(side: int, data: st.DataObject) -> None:
    window = data.draw(st.integers(1, side))
    stride = data.draw(st.integers(1, window))
    at = starts(side, window, stride)
    assert at[0] == 0
    assert at[-1] == side - window
    assert len(at) == -(-(side - window) // stride) + 1
    assert ((at[1:] > at[:-1]) & (at[1:] - at[:-1] <= stride)).all()
    cover = covers(at, window, side)
    assert (cover.sum(0) >= 1).all()
    assert (cover.sum(1) == window).all()


def test_positions_of_the_usual_settings() -> None:
    assert len(starts(224, 50, 3)) == 59
    assert len(starts(224, 32, 16)) == 13
    model = small("plain", 224)
    assert Occlusion().passes(model).forwards == 13 * 13 + 1
    assert Occlusion(window=50, stride=3).passes(model).forwards == 59 * 59 + 1


# --- an independent slow version ---
@pytest.mark.parametrize("name", ["plain", "residual", "sliding", "branches", "gated"])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (5, 5)])
def test_it_is_the_slow_version(name: str, window: int, stride: int) -> None:
    model = small(name, (20, 17))
    batch = batch_of(model, np.random.default_rng(1).random((2, 3, 20, 17), dtype=np.float32))
    found = mapped(Occlusion(window=window, stride=stride), batch)
    assert found.shape == (2, 20, 17)
    for i in range(2):
        close_to_scale(found[i], slow(batch, i, 1, window, stride), 1e-8)


def test_values_are_the_scores_that_are_asked_for() -> None:
    batch = batch_of(made(conv_net()), pictures(1))
    close_to_scale(mapped(Occlusion(window=2, stride=1, value="probability", baseline="grey"), batch)[0],
                   slow(batch, 0, 1, 2, 1, "grey", lambda output: output.softmax(1)), 1e-8)


def test_all_targets_come_of_the_same_forwards() -> None:
    model = made(conv_net())
    batch = batch_of(model, pictures(2))
    method = Occlusion(window=2)
    bounds = [batch.bind(Target(text)) for text in ("class:1", "class:3 - class:1", "top1")]
    batch.output()
    before = model.cost.forwards
    maps = [made.values for made in method.maps_for(batch, bounds)]
    assert model.cost.forwards - before == 2 * method.passes(model).forwards
    assert_close(maps[0], mapped(method, batch), rtol=0, atol=1e-12)
    assert_close(maps[1], mapped(method, batch, "class:3") - maps[0], rtol=0, atol=1e-10)


# --- near the patch, or in full ---
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "mobilenet_v2"])
def test_the_map_is_the_same_near_the_patch_and_in_full(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = large(name)
    batch = batch_of(model, np.random.default_rng(1).random((1, 3, 64, 64), dtype=np.float32))
    asked: list[int] = []
    right = Patched.__call__
    monkeypatch.setattr(Patched, "__call__", lambda self, *more: asked.append(1) or right(self, *more))
    method = Occlusion(window=6, stride=6)
    before = model.cost.forwards
    near = mapped(method, batch, "top1")
    assert asked
    asked.clear()
    assert model.cost.forwards - before == method.passes(model).forwards + 1  # and the batch's own
    monkeypatch.setattr(occlusion, "WORTH", 1e9)
    full = mapped(method, batch, "top1")
    assert not asked
    assert full.abs().max() > 1e-2 * batch.output().abs().max()
    assert_close(near, full, rtol=0, atol=2e-6 * float(batch.output().abs().max()))  # a difference of scores


def test_a_picture_of_another_size_than_the_example_is_asked_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("plain", 12)
    assert Reach.of(model) is not None
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batch, = model.prepare(load_images(pixels, normalised=True))
    assert batch.inputs.shape[-1] == 16
    close_to_scale(mapped(Occlusion(window=3), batch)[0], slow(batch, 0, 1, 3, 1), 1e-8)


@pytest.mark.parametrize("near", [True, False])
def test_where_memory_runs_out_fewer_go_at_once(near: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("plain", 12)
    batch = batch_of(model, pictures(1, 12))
    expected = mapped(Occlusion(), batch)
    sizes: list[int] = []

    def short(self: Any, first: Any, *more: Any, **others: Any) -> Tensor:
        sizes.append(len(first))
        if len(first) > 3:
            raise OutOfMemory("the memory must be enough")
        return (patched if near else infer)(self, first, *more, **others)

    patched, infer = Patched.__call__, Model.infer
    if near:
        monkeypatch.setattr(Patched, "__call__", short)
    else:
        monkeypatch.setattr(occlusion, "WORTH", 1e9)
        monkeypatch.setattr(Model, "infer", short)
    close_to_scale(mapped(Occlusion(), batch), expected, 1e-9)
    assert sizes[0] > 3
    assert set(sizes[-5:]) <= {1, 2, 3}


# --- any model, any input ---
@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels(channels: int) -> None:
    net = conv_net(channels=channels)
    model = made(net, channels=channels)
    x = torch.rand(1, channels, 6, 6, generator=torch.Generator().manual_seed(0))
    batch = batch_of(model, x)
    close_to_scale(mapped(Occlusion(window=2), batch)[0], slow(batch, 0, 1, 2, 1), 1e-8)


def test_a_regression_is_explained_by_its_raw_score() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    model = made(net)
    assert model.head.kind == "regression"
    batch = batch_of(model, pictures(1))
    for value in ("logit", "probability"):
        close_to_scale(mapped(Occlusion(window=2, value=value), batch, "top1")[0], slow(batch, 0, 0, 2, 1), 1e-8)


def test_a_callable_gives_the_map_of_the_network_behind_it() -> None:
    net = conv_net().double().eval()
    bare = Model(forward=net, mean=[0.4] * 3, std=[0.3] * 3, size=6, precision="float64")
    close_to_scale(mapped(Occlusion(), batch_of(bare, pictures(1))),
                   mapped(Occlusion(), batch_of(made(net), pictures(1))), 1e-9)


@pytest.mark.parametrize(("options", "says"), [
    ({"window": 13}, "occlusion.window must be at most the input's short side, 12; got 13"),
    ({"window": 4, "stride": 5}, "occlusion.stride must be at most the window, 4"),
    ({"stride": 9}, "occlusion.stride must be at most the window, 2"),
    ({"window": -1}, "occlusion.window must be at least 0"), ({"baseline": "pink"}, "occlusion.baseline must be"),
    ({"value": "loss"}, "occlusion.value must be one of"),
])
def test_what_does_not_fit_gives_a_sentence(options: dict[str, Any], says: str) -> None:
    with pytest.raises(XaiError, match=says):
        Occlusion(**options)(Subject((small("plain", (16, 12)),), load_images(pictures(1, 16))))


def test_captum_gives_the_same_sums() -> None:
    from captum.attr import Occlusion as Theirs

    net = conv_net().double().eval()
    batch = batch_of(made(net), pictures(2))
    # captum moves no patch back to the border: its windows are cut off there. They coincide where none is: 2, 2 and 6.
    theirs = Theirs(net).attribute(batch.inputs, sliding_window_shapes=(3, 2, 2), strides=(3, 2, 2), target=1,
                                   baselines=0)
    mine: Attribution = Occlusion(window=2, stride=2)
    assert_close(mapped(mine, batch), theirs[:, 0].double(), rtol=0, atol=1e-6)
    theirs = Theirs(net).attribute(batch.inputs, sliding_window_shapes=(3, 3, 3), strides=(3, 1, 1), target=1,
                                   baselines=0)
    assert_close(mapped(Occlusion(window=3, stride=1), batch), theirs[:, 0].double(), rtol=0, atol=1e-6)
