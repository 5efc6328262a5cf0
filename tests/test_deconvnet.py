"""DeconvNet: the modified gradient, the explicit transposed network, strongest patches and receptive fields."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from analyzers.visualization._field import Fields
from analyzers.visualization._tiles import GAP, drawn_tile, tiles
from analyzers.visualization.deconvnet import DeconvNet, project
from xai.errors import XaiError
from xai.images import Image, Images, load_images
from xai.model import Model
from xai.panels import Heatmap, Panel, Picture, Table, Text
from xai.result import Result
from xai.streaming import Left, State, blocks
from xai.subject import Subject
from xai.zoo.loading import load

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
WEIGHTS = SHARED / "models/squeezenet1_0_imagenet.safetensors"
needs_shared = pytest.mark.skipif(not WEIGHTS.exists(), reason="needs ../shared (weights and photographs)")
SIZE = 20
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def seeded(net: nn.Module) -> nn.Module:
    """In float64 and eval mode, with batch norm statistics that matter."""
    torch.manual_seed(4)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, 0, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net.double().eval()


def model(net: nn.Module, size: int = SIZE) -> Model:
    return Model(net, mean=MEAN, std=STD, size=size)


def noise(count: int, size: int = SIZE, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(count: int, size: int = SIZE) -> Images:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 257, (count, 3, size, size)).astype(np.float32) / 256  # sums of few have no rounding
    return Images.of(Image.of(f"{i}.png", value) for i, value in enumerate(values))


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)]


# --- the explicit transposed network ---
class Plain(nn.Module):
    """Convolution, ReLU, pool, twice; one convolution more. Pools of size and stride."""

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.pool = size, stride
        self.one, self.two, self.three = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 3, stride=2), nn.Conv2d(7, 6, 2)
        self.head = nn.Sequential(*head(6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.one(x)), *self.pool)
        x = F.max_pool2d(F.relu(self.two(x), inplace=True), 2, 1)
        return self.head(self.three(x))


def unpooled(signal: Tensor, switches: Tensor, shape: torch.Size) -> Tensor:
    """Each signal to where its window had its maximum; where two windows had the same, they add."""
    flat = torch.zeros(*shape[:2], shape[2] * shape[3], dtype=signal.dtype)
    flat.scatter_add_(2, switches.flatten(2), signal.flatten(2))
    return flat.view(shape)


def transposed(net: Plain, x: Tensor, places: list[tuple[int, int, int]],
               unpool: Callable[[Tensor, Tensor, torch.Size], Tensor] = unpooled) -> Tensor:
    """Zeiler and Fergus' network, step by step: unpool by the switches, rectify, transposed filters without bias."""
    with torch.no_grad():
        a = F.relu(net.one(x))
        p, switch_a = F.max_pool2d(a, *net.pool, return_indices=True)
        b = F.relu(net.two(p))
        q, switch_b = F.max_pool2d(b, 2, 1, return_indices=True)
        top = net.three(q)
        signal = torch.zeros_like(top)
        for n, (c, y, z) in enumerate(places):
            signal[n, c, y, z] = top[n, c, y, z]
        signal = F.conv_transpose2d(signal, net.three.weight)
        signal = unpool(signal, switch_b, b.shape).relu()
        slack = (p.shape[2] - 3) % 2
        signal = F.conv_transpose2d(signal, net.two.weight, stride=2, output_padding=slack)
        return F.conv_transpose2d(unpool(signal, switch_a, a.shape).relu(), net.one.weight, padding=1)


@pytest.mark.parametrize("pool", [(2, 2), (3, 2)])
def test_it_is_the_explicit_transposed_network_with_switches(pool: tuple[int, int]) -> None:
    net = seeded(Plain(*pool))
    x, places = noise(3), [(0, 1, 0), (5, 0, 1), (2, 1, 1)]
    found, _, counts = project(model(net), "three", x, places)
    expected = transposed(net, x, places)
    assert float(expected.abs().amax((1, 2, 3)).min()) > 1e-3
    assert_close(found.double(), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    assert counts.tolist() == [2, 0]


def test_max_unpool_overwrites_where_windows_share_a_maximum_so_it_is_not_used() -> None:
    net, places = seeded(Plain(3, 2)), [(0, 1, 0), (5, 0, 1), (2, 1, 1)]

    def overwriting(signal: Tensor, switches: Tensor, shape: torch.Size) -> Tensor:
        flat = torch.zeros(*shape[:2], shape[2] * shape[3], dtype=signal.dtype)
        return flat.scatter_(2, switches.flatten(2), signal.flatten(2)).view(shape)

    gap = transposed(net, noise(3), places) - transposed(net, noise(3), places, overwriting)
    assert float(gap.abs().max()) > 1e-3


# --- the modified gradient ---
class Hard(torch.autograd.Function):
    """ReLU whose backward is the ReLU of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.relu()


class Rectifier(nn.Module):
    """One that can be spelled in many ways, and replaced."""

    SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
        "F.relu": F.relu, "in place": lambda x: F.relu(x, inplace=True), "by position": lambda x: F.relu(x, True),
        "torch": torch.relu, "torch in place": torch.relu_, "method": lambda x: x.relu(), "clamp": lambda x: x.clamp(0),
        "clamp_min": lambda x: x.clamp_min(0), "named": lambda x: torch.clamp(x, min=0), "module": nn.ReLU(),
        "module in place": nn.ReLU(inplace=True), "method in place": lambda x: x.relu_(),
        "on a view": lambda x: F.relu(x.view(x.shape), inplace=True),
    }

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        return Hard.apply(x) if self.spelling == "hard" else self.SPELLINGS[self.spelling](x)


class Residual(nn.Module):
    """Batch norm, a sum, one rectifier used three times, an average pool."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.relu = Rectifier(spelling)
        self.stem, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.left, self.right = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.last, self.head = nn.Conv2d(6, 8, 3), nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.norm(self.stem(x))), 3, 2)
        x = F.avg_pool2d(self.relu(self.left(x) + self.right(x)), 2)
        return self.head(self.relu(self.last(x)))


@pytest.mark.parametrize("spelling", Rectifier.SPELLINGS)
def test_every_spelling_is_the_gradient_with_the_relu_of_the_gradient_at_its_relus(spelling: str) -> None:
    hard, x, places = seeded(Residual("hard")), noise(4), [(0, 0, 1), (1, 1, 0), (2, 0, 0), (3, 1, 1)]
    leaf = x.clone().requires_grad_()
    kept: list[Tensor] = []
    hard.head.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    hard(leaf)
    values = torch.stack([kept[0][n, c, y, z] for n, (c, y, z) in enumerate(places)])
    (expected,) = torch.autograd.grad((values * values.detach()).sum(), leaf)
    net = seeded(Residual(spelling))
    found, _, counts = project(model(net), "relu", x, places)
    assert float(expected.abs().max()) > 0
    assert_close(found.double(), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    assert counts.tolist() == [3, 0]


def test_without_a_rectifier_it_is_the_gradient_and_the_start_is_a_scale() -> None:
    net = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Conv2d(4, 5, 3), *head(5)))
    x, places = noise(2), [(1, 2, 3), (4, 0, 0)]
    found, _, counts = project(model(net), "2", x, places)
    leaf = x.clone().requires_grad_()
    maps = net[:3](leaf)
    values = torch.stack([maps[0, 1, 2, 3], maps[1, 4, 0, 0]])
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    assert_close(found.double(), gradient * values.detach()[:, None, None, None], rtol=1e-6, atol=1e-9)
    one = project(model(net), "2", x, places, alone=True)[0]
    assert_close(one.double(), gradient, rtol=1e-6, atol=1e-9)
    assert counts.tolist() == [0, 0]


def test_other_activations_rectify_the_signal_and_are_counted_apart() -> None:
    net = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 5, 3), nn.SiLU(inplace=True), *head(5)))
    x = noise(1)
    found, _, counts = project(model(net), "3", x, [(2, 4, 4)])
    with torch.no_grad():
        top = net[:4](x)
        signal = torch.zeros_like(top)
        signal[0, 2, 4, 4] = top[0, 2, 4, 4]
        signal = F.conv_transpose2d(signal.relu(), net[2].weight).relu()
        expected = F.conv_transpose2d(signal, net[0].weight)
    assert_close(found.double(), expected, rtol=1e-6, atol=1e-9)
    assert counts.tolist() == [0, 2]


# --- receptive fields ---
class Branches(nn.Module):
    """All that a field goes through: strides, padding, dilation, groups, pools that overlap and round up, branches."""

    def __init__(self, soft: bool) -> None:
        super().__init__()
        self.soft = soft
        self.stem = nn.Conv2d(3, 4, 7, stride=2, padding=3)
        self.narrow, self.wide = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding="same", dilation=2)
        self.groups = nn.Conv2d(8, 8, (3, 2), padding=(1, 0), groups=8)
        self.norm, self.last, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 2), nn.Sequential(*head(4))

    def forward(self, x: Tensor) -> Tensor:
        pool = F.avg_pool2d if self.soft else F.max_pool2d
        x = pool(F.relu(self.stem(x), inplace=True), 3, 2, ceil_mode=True)
        x = torch.cat([self.narrow(x), self.wide(x)], 1)
        y = self.groups(F.pad(x.relu(), (0, 1)))
        y += x
        return self.head(self.last(self.norm(y)))


def test_fields_are_the_pixels_that_a_unit_can_depend_on_also_at_the_borders() -> None:
    size = 27
    soft = Branches(soft=True).double().eval()
    for name, value in soft.named_parameters():
        nn.init.constant_(value, 0.0 if "bias" in name else 1.0)
    leaf = torch.ones(1, 3, size, size, dtype=torch.float64).requires_grad_()
    made = model(seeded(Branches(soft=False)), size)
    for layer in ("stem", "narrow", "wide", "groups", "last"):
        kept: list[Tensor] = []
        handle = soft.get_submodule(layer).register_forward_hook(lambda _, args, out, kept=kept: kept.append(out))
        soft(leaf)
        handle.remove()
        fields = Fields(made, made.view(layer))
        assert fields.known
        _, channels, height, width = kept[0].shape
        for c in (0, channels - 1):
            for y in range(height):
                for x in range(width):
                    (found,) = torch.autograd.grad(kept[0][0, c, y, x], leaf, retain_graph=True)
                    rows, columns = found[0].abs().sum(0).nonzero().T
                    expected = int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1
                    assert fields.at(c, y, x) == expected, (layer, c, y, x)


def test_a_projection_is_zero_outside_its_field() -> None:
    made = model(seeded(Branches(soft=False)), 27)
    fields, places = Fields(made, made.view("last")), [(0, 0, 0), (1, 5, 5), (2, 3, 0), (3, 2, 4)]
    drawn, _, _ = project(made, "last", noise(4, 27), places)
    for one, place in zip(drawn, places, strict=True):
        top, left, bottom, right = fields.at(*place)
        assert (bottom - top, right - left) != (27, 27)
        assert one[:, top:bottom, left:right].any()
        assert not one[:, :top].any()
        assert not one[:, bottom:].any()
        assert not one[:, :, :left].any()
        assert not one[:, :, right:].any()


class Normed(nn.Module):
    """A step that reads all places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Sequential(*head(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)))


def test_where_a_step_is_not_known_the_patch_is_the_whole_picture_and_the_page_says_so() -> None:
    made = model(Normed().eval())
    fields = Fields(made, made.view("norm"))
    assert not fields.known
    assert fields.at(0, 3, 3) == (0, 0, SIZE, SIZE)
    result = DeconvNet(layer="norm")(Subject((made,), images(3)))
    assert "patches are whole pictures" in panels(result, Text, "caution")[0].text


# --- the strongest patches ---
def constructed() -> Model:
    """Unit 0 is redness, 1 greenness, 2 an edge to the right; unit 3 never fires."""
    conv = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[0, 0], conv.weight[1, 1] = 1 / 8, 1 / 8
        conv.weight[2, :, :, 0], conv.weight[2, :, :, 2] = -1 / 8, 1 / 8
        conv.bias[3] = -1.0
    return Model(nn.Sequential(conv, nn.ReLU(), *head(4)).eval(), mean=[0.0] * 3, std=[1.0] * 3, size=12)


def panels(result: Result, kind: type[Panel], prefix: str = "") -> list[Any]:
    return [p for p in result.panels if isinstance(p, kind) and p.key.startswith(prefix)]


def brute(made: Model, pictures: Images, unit: int, most: int) -> list[tuple[float, int, int, int]]:
    """(value, picture, y, x), all pictures at once, strongest first."""
    inputs = torch.cat([batch.inputs for batch in made.prepare(pictures, seed=0)])
    with made.opened() as module, torch.no_grad():
        maps = module[:2](inputs)[:, unit]
    found = []
    for i, one in enumerate(maps):
        y, x = divmod(int(one.argmax()), one.shape[1])
        found.append((float(one[y, x]), i, y, x))
    return sorted(found, key=lambda row: (-row[0], row[1]))[:most]


def found_by(one: DeconvNet, subject: Subject) -> State:
    """The sums of the first stage, over all blocks."""
    state = one.start(subject)
    for block in blocks(subject, one.block, Left()):
        one.update(state, block, 0)
    return state


@pytest.mark.parametrize("chunk_bytes", [None, 20_000])
def test_the_strongest_patches_are_those_of_a_brute_force_search_over_several_blocks(chunk_bytes: int | None) -> None:
    made, pictures = constructed(), images(70, 12)
    pictures = Images.of([*pictures, *(pictures[i] for i in (5, 5, 40))])  # equal ones: the first come first
    subject = Subject((made,), pictures, memory_bytes=chunk_bytes)
    state = found_by(DeconvNet(layer="1"), subject)
    for unit in range(3):
        got = list(zip(*(state[key][unit].tolist() for key in ("value", "picture", "y", "x")), strict=True))
        assert [row[1:] for row in got] == [row[1:] for row in brute(made, pictures, unit, 9)]
    assert state["seen"].tolist() == [73, 0]


def test_parts_of_a_data_set_are_merged_to_the_whole() -> None:
    made, pictures = constructed(), images(70, 12)
    one = DeconvNet(layer="1")
    whole = found_by(one, Subject((made,), pictures))
    parts = (pictures[:40], pictures[40:41], pictures[41:])
    merged = one.merge([found_by(one, Subject((made,), part)) for part in parts])
    for key in ("value", "picture", "y", "x", "seen"):
        np.testing.assert_array_equal(merged[key], whole[key])


def test_the_page_shows_the_patches_that_were_found_in_their_order() -> None:
    made, pictures = constructed(), images(40, 12)
    result = DeconvNet(layer="1", units="2,0", patches=4, cascade=1)(Subject((made,), pictures))
    for unit in (2, 0):
        expected = brute(made, pictures, unit, 4)
        (shown,), (drawn,) = panels(result, Picture, f"patches {unit}"), panels(result, Picture, f"projections {unit}")
        crops = [pictures[i].rgb()[y : y + 3, x : x + 3] for _, i, y, x in expected]
        np.testing.assert_array_equal(shown.pixels, tiles(crops))
        assert drawn.pixels.shape == shown.pixels.shape == (6 + GAP, 6 + GAP, 3)
        assert [row.split(" ")[0] for row in shown.note.split(": ")[1].split(", ")] == [f"{i}.png" for _, i, _, _ in
                                                                                       expected]
        _, _, y, x = expected[0]
        (where,), (heat,) = panels(result, Picture, f"strongest {unit}"), panels(result, Heatmap, f"unit {unit}")
        assert where.marks[0].points == heat.marks[0].points == ((x, y), (x + 3, y + 3))
    # Unit 0 reads the mean of red: its projection is its value times its filter.
    value, _, y, x = brute(made, pictures, 0, 1)[0]
    heat = torch.as_tensor(panels(result, Heatmap, "unit 0")[0].values)
    expected_map = torch.zeros(12, 12)
    expected_map[y : y + 3, x : x + 3] = value / 8
    assert_close(heat, expected_map)
    assert [row[0] for row in panels(result, Table, "units")[0].rows] == [2, 0]


def test_auto_takes_the_units_with_the_largest_values_and_no_dead_one() -> None:
    result = DeconvNet(layer="1", count=4, cascade=0)(Subject((constructed(),), images(5, 12)))
    rows = panels(result, Table, "units")[0].rows
    assert sorted(row[0] for row in rows) == [0, 1, 2]
    assert [row[2] for row in rows] == sorted((row[2] for row in rows), reverse=True)
    assert all(row[4] == 5 for row in rows), "five pictures, five patches"
    one = DeconvNet(layer="1", count=4, cascade=0)
    planned = one.cost(Subject((constructed(),), images(5, 12)))
    assert (result.cost.forwards, result.cost.backwards) == (5 + 15 + 4, 30)
    assert planned.forwards >= result.cost.forwards
    assert planned.backwards >= result.cost.backwards


@pytest.mark.parametrize(("settings", "said"), [
    ({"units": "3"}, "the layer must be one with an active unit"), ({"units": "4"}, "channels of the layer, 0 to 3"),
    ({"units": "-1"}, "channels of the layer, 0 to 3"), ({"units": ","}, "channels of the layer, 0 to 3"),
    ({"layer": "9"}, "The layer must be a module"),
])
def test_what_cannot_be_shown_is_a_sentence(settings: dict[str, str], said: str) -> None:
    with pytest.raises(XaiError, match=said):
        DeconvNet(**{"layer": "1", **settings})(Subject((constructed(),), images(3, 12)))


def test_torchscript_is_refused_as_no_rule_reaches_into_it() -> None:
    traced = torch.jit.trace(constructed()._module, torch.zeros(1, 3, 12, 12))
    made = Model(traced, mean=[0.0] * 3, std=[1.0] * 3, size=12)
    with pytest.raises(XaiError, match="which is TorchScript"):
        DeconvNet(layer="1")(Subject((made,), images(3, 12)))


# --- what a projection depends on ---
def test_units_that_read_alike_have_projections_that_are_called_alike() -> None:
    """Two units whose filters differ by a factor draw the same; two of other colours and places do not."""
    conv = nn.Conv2d(3, 2, 3)
    with torch.no_grad():
        conv.weight[0] = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(0)) - 0.3
        conv.weight[1] = 0.5 * conv.weight[0]
        conv.bias.fill_(1.0)
    made = Model(nn.Sequential(conv, nn.ReLU(), *head(2)).eval(), mean=[0.0] * 3, std=[1.0] * 3, size=12)
    same = DeconvNet(layer="1")(Subject((made,), images(3, 12)))
    assert panels(same, Table, "units")[0].rows[0][5] == pytest.approx(1.0)
    assert "1.00 in the mean" in panels(same, Text, "caution")[0].text
    with torch.no_grad():
        conv.weight[1] = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(1)) - 0.3
    made = Model(nn.Sequential(conv, nn.ReLU(), *head(2)).eval(), mean=[0.0] * 3, std=[1.0] * 3, size=12)
    other = DeconvNet(layer="1")(Subject((made,), images(3, 12)))
    assert panels(other, Table, "units")[0].rows[0][5] < 0.9


def test_the_cascade_draws_anew_what_lies_below_the_layer_and_nothing_above() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3), *head(6))
    made = model(seeded(net))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    result = DeconvNet(layer="3", cascade=5, count=2)(Subject((made,), images(4)))
    (table,) = panels(result, Table, "units")
    assert [c.name for c in table.columns][6:] == [f"like that with {k} of 2 layers drawn anew" for k in (1, 2)]
    assert all(-1 <= cell < 0.999 for row in table.rows for cell in row[6:])
    assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


def test_tiles_stand_in_a_square_and_grey_is_zero() -> None:
    pictures = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)] + [np.full((1, 1, 3), 40, np.uint8)]
    made = tiles(pictures)
    assert made.shape == (2 * 2 + GAP, 2 * 3 + GAP, 3)
    assert (made[:2, :3] == 10).all()
    assert (made[:2, 3 + GAP :] == 20).all()
    assert (made[2 + GAP, 3 + GAP] == 40).all()
    assert (made[3 + GAP, 3 + GAP] == 255).all()
    values = np.zeros((3, 1, 3), np.float32)
    values[:, 0, 1], values[:, 0, 2] = 2.0, -1.0
    assert drawn_tile(values)[0, :, 0].tolist() == [128, 255, 64]
    assert drawn_tile(np.zeros((1, 2, 2), np.float32)).shape == (2, 2, 3)


# --- a trained network ---
@pytest.mark.slow
@needs_shared
def test_on_squeezenet_a_projection_stays_in_its_field_and_hardly_depends_on_its_unit() -> None:
    made = load("torchvision:squeezenet1_0", weights=str(WEIGHTS), device="cpu")
    photographs = load_images(str(SHARED / "images"))
    subject = Subject((made,), photographs[:6])
    result = DeconvNet(layer="features.5", count=2, patches=2, cascade=2)(subject)
    fields = Fields(made, made.view("features.5"))
    assert fields.known
    for heat in panels(result, Heatmap):
        (left, top), (right, bottom) = heat.marks[0].points
        assert (right - left, bottom - top) < (224, 224)
        outside = torch.as_tensor(heat.values).clone()
        outside[int(top) : int(bottom), int(left) : int(right)] = 0
        assert not outside.any()
    rows = panels(result, Table, "units")[0].rows
    assert all(row[5] > 0.8 for row in rows), "another unit at the same place"
