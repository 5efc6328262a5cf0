"""Incremental recomputation near patches: equal to whole forwards for any box, and cheaper where it says so."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from tests.gradient_nets import Attentive
from tests.traced_nets import LARGE, SMALL, Choosy, Late, large, model_of, picture, small
from xai import reach as module_of_reach
from xai.errors import XaiError
from xai.model import Model
from xai.reach import Patched, Reach
from xai.windows import Slide, Spot, crop, union

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

SIZE = (20, 17)  # not square, and odd on one side
LOCAL = ("residual", "pre-activation", "gated", "pairs", "sliding", "branches", "gated branches", "plain")


@cache
def opened(name: str) -> tuple[Model, Reach, Tensor, Patched]:
    model = small(name, SIZE)
    reach = Reach.of(model)
    assert reach is not None
    return model, reach, picture(model), reach.at(model, picture(model))


def whole(model: Model, x: Tensor, top: Any, left: Any, patches: Tensor) -> Tensor:
    """Every picture in full."""
    height, width = patches.shape[-2:]
    full = x.repeat(len(patches), 1, 1, 1)
    for row, t, l_, patch in zip(full, top, left, patches, strict=True):
        row[:, t : t + height, l_ : l_ + width] = patch
    return model(full)


def close(actual: Tensor, expected: Tensor) -> None:
    share = 1e-9 if expected.dtype == torch.float64 else 1e-5
    assert_close(actual, expected, rtol=0, atol=share * float(expected.abs().max()))


@st.composite
def boxes(draw: st.DrawFn) -> tuple[int, int, list[int], list[int], int]:
    """(height, width, tops, lefts, seed): windows of one size anywhere, borders and the whole picture among them."""
    height, width = draw(st.integers(1, SIZE[0])), draw(st.integers(1, SIZE[1]))
    places = draw(st.lists(st.tuples(st.integers(0, SIZE[0] - height), st.integers(0, SIZE[1] - width)),
                           min_size=1, max_size=4))
    return height, width, [t for t, _ in places], [x for _, x in places], draw(st.integers(0, 1000))


@pytest.mark.parametrize("name", [*LOCAL, "normed"])
@settings(max_examples=12, deadline=None)
@given(boxes())
def test_any_patches_give_what_whole_forwards_give(name: str, box: tuple[int, int, list[int], list[int], int]) -> None:
    model, _, x, patched = opened(name)
    height, width, top, left, seed = box
    patches = torch.randn(len(top), 3, height, width, generator=torch.Generator().manual_seed(seed)).to(x)
    kept = patches.clone()
    close(patched(top, left, patches), whole(model, x, top, left, patches))
    assert patches.equal(kept)


@pytest.mark.parametrize("limit", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("name", LOCAL)
def test_it_does_not_matter_from_where_on_whole_maps_are_made(
    name: str, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_of_reach, "WHOLE", limit)
    model, _, x, patched = opened(name)
    top, left = [0, 7, 17, 17, 3], [14, 5, 0, 14, 2]
    patches = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(1)).to(x)
    close(patched(top, left, patches), whole(model, x, top, left, patches))


SAVED = {"resnet18": (1.25, 3), "vgg11": (2, 8), "densenet121": (1.3, 3), "squeezenet1_0": (1.5, 8),
         "googlenet": (1.5, 4), "inception_v3": (1.1, 3), "mobilenet_v2": (1.2, 3), "mobilenet_v3_small": (1, 1.2),
         "shufflenet_v2_x0_5": (1, 2)}  # at a patch of two pixels: the last two have gates and shuffles early


@pytest.mark.parametrize("name", LARGE)
def test_torchvisions_networks_give_what_whole_forwards_give(name: str) -> None:
    model = large(name)
    reach = Reach.of(model)
    assert reach is not None
    assert SAVED[name][0] <= reach.saving(2, 2) <= SAVED[name][1]
    x, size = picture(model), model.preprocessing.size[0]
    patched, own = reach.at(model, x), model(x)
    for side in (1, 6, 23):
        top = [0, size - side, 0, size - side, size // 3, size // 2]
        left = [0, size - side, size - side, 0, size // 2, size // 5]
        patches = torch.randn(len(top), 3, side, side, generator=torch.Generator().manual_seed(side))
        expected = whole(model, x, top, left, patches)
        assert float((expected - own).abs().max()) > 1e-3 * float(expected.abs().max())
        before = model.cost.forwards
        close(patched(top, left, patches), expected)
        assert model.cost.forwards == before + len(top)


@pytest.mark.parametrize("name", LOCAL)
def test_the_pictures_own_values_are_never_written_over(name: str) -> None:
    model, _, x, patched = opened(name)
    kept = {node: value.clone() for node, value in patched._base.items() if isinstance(value, Tensor)}
    for side in (2, 9, 17):
        patched([1, 3], [0, 0], torch.randn(2, 3, side, side, dtype=torch.float64))
    assert all(patched._base[node].equal(value) for node, value in kept.items())
    assert x.equal(picture(model))


# --- what is saved ---
@pytest.mark.parametrize("name", LOCAL)
def test_small_patches_are_cheap_and_larger_ones_never_cheaper(name: str) -> None:
    _, reach, _, _ = opened(name)
    found = [reach.saving(side, side) for side in (1, 4, 8, 17)]
    assert found[0] > 1.2
    assert found == sorted(found, reverse=True)
    assert reach.saving(*SIZE) == 1


def test_the_saving_is_the_ratio_of_multiply_adds() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, stride=2, padding=1),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    reach = Reach.of(model_of(net.eval(), 32))
    assert reach is not None
    full = 32 * 32 * 135 + 16 * 16 * 180 + 8
    # a patch of 4 pixels changes 6 by 6 outputs, then 4 by 4 at its odd places
    assert reach.saving(4, 4) == pytest.approx(full / (36 * 135 + 16 * 180 + 8))


def test_windows_are_as_large_as_the_patches_need() -> None:
    _, reach, _, _ = opened("plain")
    plan = reach.plan(Spot(np.array([4]), np.array([3]), 4, 4))
    spots = {str(node): spot for node, spot in plan.items()}
    found = {name: (int(s.top[0]), s.height, int(s.left[0]), s.width) for name, s in spots.items() if s is not None}
    assert found["net_conv"] == found["net_act"] == (3, 6, 2, 6)
    assert found["net_pool"] == (1, 4, 1, 3)  # rows 3 to 8 lie in its rows 1 to 4, columns 2 to 7 in 1 to 3
    assert found["net_more"] == (0, 5, 0, 4)  # without padding: cut off at the border
    assert spots["net_mean"] is None
    assert plan[reach.graph.exit] is None


def test_as_many_patches_at_once_as_memory_holds() -> None:
    model = model_of(SMALL["plain"]().eval(), 224)
    reach = Reach.of(model)
    assert reach is not None
    assert reach.rows(16, 16, 1 << 40, model.device) == module_of_reach.MOST
    assert reach.rows(16, 16, 1, model.device) == 1
    own = sum(reach._bytes(node, None) for node in reach.graph.nodes)
    some = [reach.rows(16, 16, own + (k << 18), model.device) for k in (1, 2, 4, 8)]
    assert 1 <= some[0] < some[1] < some[2] < some[3] < module_of_reach.MOST


# --- where there is none ---
class Opaque(nn.Module):
    """Two branches of one picture whose sum of squares is no step place by place."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x.flatten(2), x.flatten(2)).mean(2)


@pytest.mark.parametrize("kind", [Choosy, Attentive, Late])
def test_a_network_without_a_graph_has_none(kind: type[nn.Module]) -> None:
    assert Reach.of(model_of(kind().eval(), 6)) is None


def test_a_model_that_is_no_network_has_none() -> None:
    net = SMALL["plain"]().eval().double()
    assert Reach.of(Model(forward=net, mean=[0.5] * 3, std=[0.5] * 3, size=12, precision="float64")) is None


def test_steps_that_are_not_local_save_nothing() -> None:
    reach = Reach.of(model_of(Opaque().eval(), 8))
    assert reach is not None
    assert all(spot is None for node, spot in reach.plan(Spot(np.array([1]), np.array([1]), 2, 2)).items()
               if node is not reach.graph.entry)


class Odd(nn.Module):
    """Steps that look local and are not, one of them chosen."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which, self.conv = which, nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
        self.norm, self.head = nn.BatchNorm2d(3, track_running_stats=False), nn.Linear(4, 3)
        self.place, self.column = nn.Parameter(torch.randn(1, 3, 12, 12)), nn.Parameter(torch.randn(12))
        self.pool, self.mix = nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = {"circular": lambda x: x, "own statistics": self.norm, "places": lambda x: x + self.place,
             "columns": lambda x: x * self.column, "turned": lambda x: x.transpose(2, 3).flip(2),
             "stacked": lambda x: torch.cat([x, x[:, :, :6]], 2)[:, :, 3:15], "cumulated": lambda x: x.cumsum(2),
             "softmax": lambda x: x.softmax(3), "uncounted": lambda x: F.interpolate(self.pool(x), size=12),
             "picked rows": lambda x: x[:, :, [*range(6, 12), *range(6)]]}[self.which](x)
        x = self.conv(x) if self.which == "circular" else self.mix(x)
        return self.head(x.relu().mean((2, 3)))


@pytest.mark.parametrize("which", ["circular", "own statistics", "places", "columns", "turned", "stacked", "cumulated",
                                   "softmax", "uncounted", "picked rows"])
def test_steps_that_look_local_and_are_not(which: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = model_of(Odd(which).eval(), 12)
    reach, x = Reach.of(model), picture(model)
    assert reach is not None
    top, left = [0, 9, 4], [9, 0, 5]
    patches = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(1)).to(x)
    close(reach.at(model, x)(top, left, patches), whole(model, x, top, left, patches))


def test_a_wrong_reach_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Slide.read
    monkeypatch.setattr(Slide, "read", lambda self, spot: right(self, Spot(spot.top, spot.left * 0, spot.height,
                                                                           spot.width)))
    assert Reach.of(small("plain", SIZE)) is None


def test_patches_that_do_not_fit_give_a_sentence() -> None:
    patched = opened("plain")[3]
    with pytest.raises(XaiError, match="must be one that"):
        patched([0], [0], torch.zeros(1, 5, 3, 3, dtype=torch.float64))


# --- windows ---
@settings(max_examples=300, deadline=None)
@given(size=st.integers(1, 5), stride=st.integers(1, 6), dilation=st.integers(1, 3), padding=st.integers(0, 4),
       side=st.integers(9, 24), data=st.data())
def test_windows_hold_every_output_that_reads_a_change(size: int, stride: int, dilation: int, padding: int, side: int,
                                                       data: st.DataObject) -> None:
    span = dilation * (size - 1)
    out = (side + 2 * padding - span - 1) // stride + 1
    if out < 1:
        return
    length = data.draw(st.integers(1, side))
    starts = data.draw(st.lists(st.integers(0, side - length), min_size=1, max_size=3))
    slide = Slide((size, 1), (stride, 1), (padding, 0), (dilation, 1), 0.0, torch.relu)
    spot = slide.reached(Spot(np.array(starts), np.zeros(len(starts), int), length, 1), (out, 1))
    assert spot.height <= out
    assert ((spot.top >= 0) & (spot.top + spot.height <= out)).all()
    most = 1
    for start, top in zip(starts, spot.top, strict=True):
        read = [[o * stride - padding + dilation * k for k in range(size)] for o in range(out)]
        changed = [o for o, places in enumerate(read) if any(start <= place < start + length for place in places)]
        loose = [o for o, places in enumerate(read) if places[0] < start + length and places[-1] >= start]
        assert all(top <= o < top + spot.height for o in changed)
        most = max(most, len(loose))
    assert spot.height == most  # no larger than the longest of them
    read_spot = slide.read(spot)
    assert (read_spot.top == spot.top * stride - padding).all()
    assert read_spot.height == (spot.height - 1) * stride + span + 1


def test_windows_are_cut_out_with_what_has_changed_pasted_in() -> None:
    base = torch.arange(2 * 5 * 6, dtype=torch.float64).view(1, 2, 5, 6)
    values = -torch.ones(3, 2, 2, 3, dtype=torch.float64) * torch.tensor([1.0, 2, 3])[:, None, None, None]
    held = Spot(np.array([0, 3, 1]), np.array([0, 3, 2]), 2, 3)
    spot = Spot(np.array([-1, 2, 0]), np.array([-1, 4, 3]), 4, 3)
    found = crop(base, spot, 7.0, values, held)
    padded = F.pad(base, (3, 3, 3, 3), value=7.0).repeat(3, 1, 1, 1)
    for j in range(3):
        t, x = held.top[j] + 3, held.left[j] + 3
        padded[j, :, t : t + 2, x : x + 3] = values[j]
        y, z = spot.top[j] + 3, spot.left[j] + 3
        inside = F.pad(torch.ones(1, 1, 5, 6), (3, 3, 3, 3))[0, :, y : y + 4, z : z + 3] > 0
        expected = torch.where(inside, padded[j, :, y : y + 4, z : z + 3], 7.0)
        assert_close(found[j], expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_union_holds_all_windows_in_one_size() -> None:
    one, two = Spot(np.array([0, 5]), np.array([2, 2]), 3, 3), Spot(np.array([2, 5]), np.array([1, 4]), 2, 4)
    both = union([one, two], (8, 8))
    assert (both.height, both.width) == (4, 6)
    assert both.top.tolist() == [0, 4]
    assert both.left.tolist() == [1, 2]
    assert union([one], (8, 8)) is one
