"""The network's own graph and the tail above a layer: equal to whole forwards, and the network stays as it was."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from tests.gradient_nets import Attentive, batch_of, pictures
from tests.traced_nets import LARGE, SMALL, Choosy, Keeper, Late, large, model_of, picture, small
from xai.errors import XaiError
from xai.fast import freeze
from xai.graph import agree, graph_of
from xai.layers import Capture, LayerView
from xai.model import Model
from xai.tail import Above, Tail, _Put
from xai.targets import Target

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def close(actual: Tensor, expected: Tensor, share: float | None = None) -> None:
    """Within a share of the largest value: 1e-9 in float64, 1e-5 in float32."""
    share = share or (1e-9 if expected.dtype == torch.float64 else 1e-5)
    assert_close(actual, expected, rtol=0, atol=share * float(expected.abs().max()))


# --- the graph ---
@pytest.mark.parametrize("name", SMALL)
def test_the_graph_gives_the_networks_output_for_any_number_of_pictures(name: str) -> None:
    model = small(name)
    graph = graph_of(model.fast.module, model.example())
    assert graph is not None
    x = torch.cat([picture(model, seed) for seed in range(3)])
    with torch.no_grad():
        for some in (x[:1], x):
            close(graph.base(some)[graph.exit], model.fast.module(some))
            close(graph.base(some)[graph.exit], model._module(some))  # type: ignore[misc]  # it is there


@pytest.mark.parametrize("name", SMALL)
def test_every_step_keeps_its_own_value_though_the_network_works_in_place(name: str) -> None:
    model = small(name)
    x, module = picture(model), model.fast.module
    graph = graph_of(module, model.example())
    assert graph is not None
    views = [view for view in model.layers() if view.name not in model.fast.folded]
    with torch.no_grad():
        with Capture(module, views, cut=False) as capture:
            module(x.clone())
        values = graph.base(x)
        for view in views:
            place = graph.place(view)
            assert place is not None, view
            node, path = place
            close(LayerView(view.name, (1, 1), 1, "nchw", path=path).pick(values[node]), capture.values[view])


@pytest.mark.parametrize("name", SMALL)
def test_a_value_that_is_kept_is_not_written_over(name: str) -> None:
    model = small(name)
    graph, x = graph_of(model.fast.module, model.example()), picture(model)
    assert graph is not None
    with torch.no_grad():
        every = graph.base(x)
        for node in graph.nodes[1:]:
            found = graph.base(x, {node})
            assert found.keys() == {node, graph.exit}
            if isinstance(found[node], Tensor):
                assert_close(found[node], every[node], rtol=0, atol=0)


def test_a_value_is_copied_only_where_something_else_reads_it() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            z = y.mean((2, 3))
            y = y.relu_()
            return self.head(y.mean((2, 3)) - z)

    def copies(net: nn.Module) -> int:
        graph = graph_of(freeze(net.double()), torch.randn(1, 3, 8, 8, dtype=torch.float64))
        assert graph is not None
        return sum(not graph.lent(read) for reads in graph.writes.values() for read in reads)

    assert copies(Twice()) == 1
    assert copies(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.ReLU(True), nn.Dropout(), nn.ReLU6(True))) == 0


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + torch.rand(3, 1, 1)).mean((2, 3))


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.lock = nn.Conv2d(3, 4, 3), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x).mean((2, 3))


@pytest.mark.parametrize("kind", [Choosy, Attentive, Late, Noisy, Locked])
def test_where_the_graph_would_not_show_the_network_there_is_none(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    assert graph_of(freeze(kind()), torch.randn(1, 3, 6, 6)) is None


def test_tracing_leaves_nothing_on_the_network() -> None:
    net = freeze(Keeper())
    before = [(name, sorted(vars(part)), list(part._forward_hooks)) for name, part in net.named_modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        expected, kept = net(x), net.seen
    graph = graph_of(net, x)
    assert graph is not None
    assert net.seen.shape[1:] == kept.shape[1:]
    assert type(net.seen) is Tensor
    assert [(name, sorted(vars(part)), list(part._forward_hooks)) for name, part in net.named_modules()] == before
    assert all(value.equal(state[name]) for name, value in net.state_dict().items())
    held = {id(parameter) for parameter in net.parameters()}
    assert held == {id(parameter) for parameter in graph.root.parameters()}, "the weights are not copied"
    with torch.no_grad():
        assert_close(graph.base(x)[graph.exit], expected)


def test_outputs_agree_to_a_hundred_thousandth_of_their_largest() -> None:
    one = {"a": torch.tensor([1.0, 100.0]), "b": (torch.tensor([2]),)}
    assert agree(one, {"a": torch.tensor([1.0009, 100.0]), "b": (torch.tensor([3]),)})
    assert not agree(one, {"a": torch.tensor([1.0011, 100.0]), "b": (torch.tensor([2]),)})
    assert not agree(one, {"a": torch.tensor([float("nan"), 100.0]), "b": (torch.tensor([2]),)})
    half = torch.tensor([1.0, 100.0], dtype=torch.bfloat16)
    assert agree(half, half + torch.tensor([2.0, 0.0], dtype=torch.bfloat16))
    assert not agree(half, half + torch.tensor([4.0, 0.0], dtype=torch.bfloat16))


def test_the_graph_of_a_network_in_half_precision() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = model_of(SMALL["residual"]().eval(), 12, "bfloat16")
    assert Tail.of(model, model.view("pool")).cut


# --- the tail ---
def whole(model: Model, view: LayerView, x: Tensor, maps: Tensor) -> Tensor:
    """Every picture through the whole network, its activations put in place by a hook."""
    module = model.runner([view.name])
    with _Put(module, view, maps):
        return model.run(x.expand(len(maps), -1, -1, -1), module)


def own_maps(model: Model, view: LayerView, x: Tensor) -> Tensor:
    module = model.runner([view.name])
    with Capture(module, [view], cut=False) as capture:
        module(x.clone())
    return view.to_map(capture.values[view])


def changed(maps: Tensor, rows: int = 3) -> Tensor:
    """The maps themselves, and others."""
    noise = torch.randn(rows, *maps.shape[1:], generator=torch.Generator().manual_seed(2)).to(maps)
    noise[0] = 0
    return maps + noise * maps.std()


@torch.no_grad()
def check_tail(model: Model, view: LayerView) -> tuple[bool, bool]:
    """That it gives what whole forwards give; whether it is cut, and whether the layer matters at all."""
    x = picture(model)
    maps = changed(own_maps(model, view, x))
    kept, expected = maps.clone(), whole(model, view, x, maps)
    tail = Tail.of(model, view)
    count = model.cost.forwards
    above = tail.at(model, x)
    assert model.cost.forwards == count + tail.opening
    close(above(maps), expected)
    assert model.cost.forwards == count + tail.opening + len(maps)
    close(above(maps[1:2]), expected[1:2])
    assert maps.equal(kept), "the caller's maps are not written to"
    least = 1e-6 if expected.dtype == torch.float64 else 1e-3
    return tail.cut, float((expected[1] - expected[0]).abs().max()) > least * float(expected.abs().max())


@pytest.mark.parametrize("name", SMALL)
def test_the_tail_above_every_layer_gives_what_whole_forwards_give(name: str) -> None:
    model = small(name)
    for view in model.layers():
        to_no_class_token = name == "tokens" and view.name.startswith(("heads", "last", "mlp"))
        assert check_tail(model, view) == (True, not to_no_class_token)


ENDS = {"resnet18": {"layer4": True, "layer4.1.bn2": False}, "vgg11": {"features.19": False},
        "densenet121": {"features.norm5": False}, "squeezenet1_0": {"features": False},
        "googlenet": {"inception5b": True}, "mobilenet_v2": {"features.18": True, "features.17": False}}


@pytest.mark.parametrize("name", LARGE)
def test_the_tail_of_torchvisions_networks_gives_what_whole_forwards_give(name: str) -> None:
    model = large(name)
    views = model.layers()
    for view in (model.view(), views[len(views) // 2], views[-4]):
        assert check_tail(model, view) == (True, True)
    for layer, affine in ENDS.get(name, {}).items():
        tail = Tail.of(model, model.view(layer))
        assert (tail.cut, tail.affine) == (True, affine)


@pytest.mark.parametrize("kind", [Choosy, Attentive, Late])
def test_a_network_without_a_graph_is_run_whole(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = model_of(kind().eval(), 6)
    views = model.layers()
    assert views
    for view in views:
        assert not check_tail(model, view)[0]
        assert not Tail.of(model, view).affine


def test_a_layer_that_runs_twice_is_cut_at_the_call_that_is_named() -> None:
    model = small("residual")
    first, second = model.view("relu:0"), model.view("relu:1")
    assert (first.call, second.call) == (0, 1)
    x = picture(model)
    with torch.no_grad():
        for view in (first, second):
            maps = changed(own_maps(model, view, x))
            close(Tail.of(model, view).at(model, x)(maps), whole(model, view, x, maps))
    assert len(Tail.of(model, first)._part._todo) > len(Tail.of(model, second)._part._todo)  # type: ignore[union-attr]


def test_a_tail_that_reads_only_the_layer_needs_no_forward_of_the_picture() -> None:
    model = small("plain")
    assert Tail.of(model, model.view("more")).opening == 0
    model = small("tokens")
    assert Tail.of(model, model.view("last")).opening == 1, "the class token and the skip connection"
    assert Tail.of(small("residual"), small("residual").view("conv")).opening == 1


def test_a_layer_that_was_folded_away_is_cut_in_the_plain_network() -> None:
    model = small("residual")
    assert "conv" in model.fast.folded
    view = model.view("conv")
    with torch.no_grad():
        assert_close(own_maps(model, view, picture(model)),
                     own_maps_of(model._module, view, picture(model)), rtol=1e-9, atol=1e-9)
    assert check_tail(model, view) == (True, True)


def own_maps_of(module: Any, view: LayerView, x: Tensor) -> Tensor:
    with Capture(module, [view], cut=False) as capture:
        module(x.clone())
    return view.to_map(capture.values[view])


def test_maps_that_a_step_writes_to_are_copied_first() -> None:
    model = model_of(nn.Sequential(OrderedDict([
        ("body", nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity())), ("act", nn.ReLU(True)), ("flat", nn.Flatten())])))
    for view in (model.view("body.0"), model.view("body")):
        assert check_tail(model, view) == (True, True)


def test_gradients_pass_the_tail() -> None:
    model = small("residual")
    batch = batch_of(model, pictures(1, 12))
    view = batch.view("pool")
    bound = batch.bind(Target("class:1"))
    leaf = batch.activations("pool").clone().requires_grad_()
    score = bound(Tail.of(model, view).at(model, batch.inputs)(leaf))
    expected = batch.gradients("pool", bound)
    assert expected.abs().max() > 0
    close(torch.autograd.grad(score.sum(), leaf)[0], expected)


def test_a_tail_that_fails_says_so_in_a_sentence() -> None:
    model = small("plain")
    above = Tail.of(model, model.view("more")).at(model, picture(model))
    with pytest.raises(XaiError, match="must be one that"):
        above(torch.zeros(2, 5, 4, 4, dtype=torch.float64))


def test_as_many_rows_as_keep_every_value_small() -> None:
    model = small("plain", 224)
    tail = Tail.of(model, model.view("conv"))
    assert tail.rows(None, model.device) == (32 << 20) // (8 * 224 * 224 * 8)
    assert tail.rows(1, model.device) == 1
    assert Tail.of(model, model.view("more")).rows(1 << 40, model.device) > tail.rows(None, model.device)


# --- affine or not ---
class After(nn.Module):
    """A layer `here`, and what comes after it."""

    def __init__(self, then: Any) -> None:
        super().__init__()
        self.stem, self.here = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.conv, self.norm, self.head = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.relu, self.layer = nn.ReLU(), nn.LayerNorm(6)
        nn.init.uniform_(self.norm.running_mean, -1, 1)
        self.then = (then,)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).tanh()
        return self.then[0](self, self.here(x), x)


AFFINE = {
    "pool and head": lambda s, y, x: s.head(F.adaptive_avg_pool2d(y, 1).flatten(1)),
    "mean": lambda s, y, x: s.head(y.mean([2, 3])),
    "conv, norm": lambda s, y, x: s.head(s.norm(s.conv(y)).mean((2, 3))),
    "sum with a skip": lambda s, y, x: s.head((y + x).mean((2, 3))),
    "in place sum": lambda s, y, x: s.head(y.add_(x).mean((2, 3))),
    "twice": lambda s, y, x: s.head((y - 3 * y + torch.cat([y[:, :3], y[:, 3:]], 1)).sum((2, 3)) / 7),
    "weighed by what is below": lambda s, y, x: s.head((y * x.sigmoid()).mean((2, 3))),
    "by its own shape": lambda s, y, x: s.head(y.reshape(y.shape[0], y.size(1), -1).sum(-1) / y.shape[2]),
}
CURVED = {
    "relu": lambda s, y, x: s.head(s.relu(y).mean((2, 3))),
    "relu, a function": lambda s, y, x: s.head(torch.relu(s.conv(y)).mean((2, 3))),
    "its square": lambda s, y, x: s.head((y * y).mean((2, 3))),
    "a product with a function of it": lambda s, y, x: s.head((y * y.mean()).mean((2, 3))),
    "a quotient": lambda s, y, x: s.head((x / (3 + y)).mean((2, 3))),
    "largest": lambda s, y, x: s.head(F.adaptive_max_pool2d(y, 1).flatten(1)),
    "layer norm": lambda s, y, x: s.head(s.layer(y.mean((2, 3)))),
    "softmax": lambda s, y, x: s.head(y.flatten(2).softmax(2)[:, :, 0] * x.sum((2, 3))),
    "exponent": lambda s, y, x: s.head(y.mean((2, 3)) ** 2),
}


def ended(then: Any) -> tuple[Model, LayerView]:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = model_of(After(then).eval(), 8)
    return model, model.view("here")


def gap(above: Above, one: Tensor, two: Tensor) -> float:
    """How far the tail is from affine on the line through two maps, as a share of the output's change."""
    with torch.no_grad():
        a, b, middle = above(one), above(two), above(0.3 * one + 0.7 * two)
    return float((middle - 0.3 * a - 0.7 * b).abs().max() / (a - b).abs().max())


@pytest.mark.parametrize("name", [*AFFINE, *CURVED])
def test_whether_the_tail_is_affine_is_told_from_its_steps(name: str) -> None:
    model, view = ended(AFFINE.get(name) or CURVED[name])
    tail, x = Tail.of(model, view), picture(model)
    assert tail.cut
    assert tail.affine == (name in AFFINE)
    maps = own_maps(model, view, x).detach()
    off = gap(tail.at(model, x), maps, maps + torch.randn_like(maps))
    assert off < 1e-9 if name in AFFINE else off > 1e-6


def test_a_hook_of_its_owner_on_a_step_makes_it_unknown() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        net = After(AFFINE["pool and head"]).eval()
    assert Tail.of(model_of(net, 8), model_of(net, 8).view("here")).affine
    net.head.register_forward_hook(lambda _, args, output: output.relu())
    model = model_of(net, 8)
    assert not Tail.of(model, model.view("here")).affine


def test_the_steps_of_a_stack_are_told_from_their_modules() -> None:
    model = small("plain")
    expected = OrderedDict(conv=False, act=False, pool=True, more=True)
    assert {name: Tail.of(model, model.view(name)).affine for name in expected} == dict(expected)
