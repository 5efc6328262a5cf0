"""The linear interpreter: y = F x + r with r of its own, the adjoint, the exact Jacobian, the SVD, held decisions."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import xai
from tests.gradient_nets import Attentive
from xai.errors import XaiError
from xai.linear import COMPLETE, Linear
from xai.model import Model

SIZE = 11


class Plain(nn.Module):
    """ReLU in four spellings, leaky ReLU, PReLU, pools, batch norm, a residual sum in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.two, self.three = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.Conv2d(6, 6, 1)
        self.prelu, self.last = nn.PReLU(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.one(x)), inplace=True)
        y = F.leaky_relu(self.two(x), 0.2) + 0.1
        y += x
        y = F.max_pool2d(y.relu_(), 2)
        y = self.prelu(torch.cat([self.three(y)[:, :3], y[:, 3:]], 1))
        y = torch.where(y > 0.3, y, 0.5 * y) + y.clamp(min=0)
        return self.last(F.adaptive_avg_pool2d(torch.maximum(y, 0.7 * y), 1).flatten(1))


class Gated(nn.Module):
    """Squeeze and excite, smooth and clipped activations, a sigmoid that is an activation, GLU, two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.group, self.instance = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)
        self.squeeze, self.two, self.three = nn.Linear(8, 8), nn.Conv2d(8, 16, 3), nn.Conv2d(8, 6, 1)
        self.last = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.group(self.one(x)))
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3))))[..., None, None]
        x = F.hardswish(self.instance(x), inplace=True)
        a, b = self.two(x).chunk(2, 1)
        x = F.gelu(a, approximate="tanh") * b
        x = F.relu6(self.three(x) * 4) + F.elu(x[:, :6]) + F.mish(x[:, 2:]).tanh() + F.softplus(x[:, 1:7])
        return self.last(torch.sigmoid(x).mean((2, 3)) + x.flatten(2).norm(dim=2) / 3)


class Upscaling(nn.Module):
    """A picture from a picture, by sub-pixel convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.two(torch.tanh(self.one(x))), 2)


NETS: dict[str, Callable[[], nn.Module]] = {"plain": Plain, "gated": Gated, "attention": Attentive,
                                            "upscaling": Upscaling}


def net(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """With biases, running statistics and slopes that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = NETS[name]().eval()
        for key, value in made.named_parameters():
            if "bias" in key:
                nn.init.normal_(value, 0, 0.3)
        for part in made.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.running_mean, 0, 0.3)
                nn.init.uniform_(part.running_var, 0.5, 2)
    return made.to(dtype)


def picture(size: int = SIZE, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """(1, 3, size, size), seeded noise."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def side(name: str) -> int:
    """Pixels of a side that the network takes."""
    return 6 if name == "attention" else SIZE


def made(name: str, mode: str = "gate") -> tuple[nn.Module, Tensor, Linear]:
    """A network, an input, and its linear system."""
    network, x = net(name), picture(side(name))
    return network, x, xai.linearize(Model(network, size=side(name)), x, mode)


every = pytest.mark.parametrize(("name", "mode"), list(itertools.product(NETS, ("gate", "tangent"))))


@every
def test_rows_and_the_replayed_offset_add_up_to_the_output(name: str, mode: str) -> None:
    """r never sees F; every output of the network is one check."""
    network, x, linear = made(name, mode)
    with torch.no_grad():
        assert_close(linear.y, network(x))
    every_one = torch.eye(linear.y[0].numel(), dtype=torch.float64)[:: max(1, linear.y[0].numel() // 24)]
    directions = every_one.view(-1, *linear.y.shape[1:])
    rows = linear.transpose(directions)
    votes = (rows * x).flatten(1).sum(1)
    r = linear.offset.flatten()[every_one.argmax(1)]
    assert_close(votes + r, linear.y.flatten()[every_one.argmax(1)], rtol=1e-11, atol=1e-11)
    assert max(linear.gap(direction) for direction in directions[:3]) < 1e-12


@every
def test_columns_are_the_adjoint_of_rows_and_the_replay_is_affine(name: str, mode: str) -> None:
    """Rows, columns and the replay, which needs no gradient, are of one frozen network."""
    _, x, linear = made(name, mode)
    u, v = torch.randn_like(linear.y), picture(x.shape[-1], seed=2)
    forth, back = linear.forward(v), linear.transpose(u)
    assert_close((u * forth).sum(), (back * v).sum(), rtol=1e-10, atol=1e-10)
    assert_close(linear(v), forth + linear.offset, rtol=1e-9, atol=1e-9)
    assert_close(linear(0.3 * x + 0.7 * v), 0.3 * linear(x) + 0.7 * linear(v), rtol=1e-9, atol=1e-9)
    assert_close(linear(x), linear.y, rtol=1e-9, atol=1e-9)


@every
def test_the_constants_of_the_layers_add_up_to_the_offset(name: str, mode: str) -> None:
    """Each found by itself on the way back; none is missing and none counted twice."""
    _, _, linear = made(name, mode)
    direction = torch.eye(linear.y.numel(), dtype=torch.float64)[3].view(linear.y.shape)
    row, terms = linear.terms(direction)
    assert_close(row[None], linear.transpose(direction))
    total = torch.tensor([term.value for term in terms], dtype=torch.float64).sum()
    assert_close(total, linear.offset.flatten()[3], rtol=1e-10, atol=1e-10)
    for term in terms:
        if term.map is not None:
            assert_close(float(term.map.sum()), term.value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "mode"), [("plain", "gate"), *((name, "tangent") for name in NETS)])
def test_f_is_the_exact_jacobian(name: str, mode: str) -> None:
    """In tangent mode of any network, in gate mode of one that is piecewise linear through zero."""
    network, x, linear = made(name, mode)
    jacobian = torch.func.jacrev(lambda one: network(one)[0].flatten())(x)[:, 0].flatten(1)
    size = linear.y[0].numel()
    rows = linear.transpose(torch.eye(size, dtype=torch.float64).view(size, *linear.y.shape[1:])).flatten(1)
    assert_close(rows, jacobian, rtol=1e-10, atol=1e-12)
    dense, found = torch.linalg.svd(jacobian, full_matrices=False), linear.singular(3, steps=30, more=20)
    assert_close(found.values[:3], dense.S[:3], rtol=1e-6, atol=1e-12)
    for k in range(2):
        assert abs(float(found.right[k].flatten() @ dense.Vh[k])) == pytest.approx(1, abs=1e-4)
        assert_close(linear.forward(found.right[k][None])[0], found.left[k] * found.values[k], rtol=1e-3, atol=1e-5)
    assert found.energy == pytest.approx(float(jacobian.square().sum()), rel=1e-9 if found.exact else 0.5)


@pytest.mark.parametrize("name", NETS)
def test_nothing_is_kept_of_a_system_that_is_gone(name: str) -> None:
    """What was recorded holds hooks that hold what was recorded: a ring that must not outlive its owner."""

    def tensors() -> int:
        _, _, linear = made(name)
        linear.terms(torch.ones_like(linear.y))
        del linear
        gc.collect()
        return sum(type(one) is Tensor for one in gc.get_objects())

    tensors()
    assert tensors() == tensors()


def test_many_outputs_have_all_singular_values_where_they_are_asked_for() -> None:
    """150 classes: more than one block of rows; F is the Jacobian, and an effective rank needs every value."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 150)).double()
    x = picture(8)
    jacobian = torch.func.jacrev(lambda one: network(one)[0])(x)[:, 0].flatten(1)
    expected = torch.linalg.svd(jacobian, full_matrices=False)
    linear = Linear(Model(network, size=8), x)
    found = linear.singular(3, dense=150)
    assert found.exact
    assert not linear.singular(3).exact
    assert_close(found.values, expected.S, rtol=1e-6, atol=1e-7 * float(expected.S[0]))
    assert found.energy == pytest.approx(float(jacobian.square().sum()), rel=1e-10)
    for k in range(3):
        assert abs(float(found.right[k].flatten() @ expected.Vh[k])) == pytest.approx(1, abs=1e-9)
        assert_close(linear.forward(found.right[k][None])[0], found.left[k] * found.values[k], rtol=1e-8, atol=1e-9)
    model, pixels = Model(network.float(), mean=[0.4] * 3, std=[0.3] * 3, size=8), torch.rand(3, 8, 8)
    few = xai.explain(model, pixels, "linearscope", evidence="off").result
    every = xai.explain(model, pixels, "linearscope", evidence="off", settings={"dense": "150"}).result
    keys = [{panel.key for panel in result.panels} for result in (few, every)]
    assert keys[1] - keys[0] == {"effective_rank"}


def test_gate_mode_differs_from_the_jacobian_where_gates_do() -> None:
    """Two linear branches without a bias, multiplied: votes add up to y once, gradient x input to y twice."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(3, 4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return (self.one(x) * self.two(x)).mean((2, 3))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Product().double()
    x = picture()
    for mode, times in (("gate", 1), ("tangent", 2)):
        linear = xai.linearize(Model(network, size=SIZE), x, mode)
        row = linear.transpose(torch.eye(4, dtype=torch.float64)[:1])
        assert_close((row * x).sum(), times * linear.y[0, 0])
    assert linear.tape.choices == []
    assert xai.linearize(Model(network, size=SIZE), x).tape.choices == ["mul: the second factor, of 4x9x9"]


def test_a_gate_is_held_whichever_side_it_stands_on_and_an_activation_is_not() -> None:
    """The sigmoid that multiplies is constant; the one that feeds a layer has its tangent."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.value, self.last = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.sigmoid(self.gate(x)) * self.value(x)
            return self.last(torch.sigmoid(y)).mean((2, 3))

    network, x = Two().double(), picture()
    linear = xai.linearize(Model(network, size=SIZE), x)
    row = linear.transpose(torch.eye(3, dtype=torch.float64)[:1])
    leaf = x.clone().requires_grad_()
    y = torch.sigmoid(network.gate(leaf)).detach() * network.value(leaf)
    (slow,) = torch.autograd.grad(network.last(torch.sigmoid(y)).mean((2, 3))[0, 0], leaf)
    assert_close(row, slow)


@pytest.mark.parametrize("switch", [F.relu, torch.relu_, F.silu, torch.tanh_, F.hardtanh])
def test_of_two_factors_the_activated_one_is_held(switch: Callable[[Tensor], Tensor]) -> None:
    """Also where it stands first, and in place: no credit goes to what opens the gate."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.value = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return (switch(self.gate(x)) * self.value(x)).mean((2, 3))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, x = Two().double(), picture()
    linear = xai.linearize(network, x)
    assert linear.tape.choices == [f"mul: the first factor, of 3x{SIZE}x{SIZE}"]
    leaf = x.clone().requires_grad_()
    slow = (switch(network.gate(x)).detach() * network.value(leaf)).mean((2, 3))[0, 0]
    (expected,) = torch.autograd.grad(slow, leaf)
    assert_close(linear.transpose(torch.eye(3, dtype=torch.float64)[:1]), expected)


def test_a_product_of_three_has_its_tangent() -> None:
    network = nn.Sequential(net("plain"))
    network.forward = lambda x: torch.einsum("nchw,nchw,nchw->nc", x, x, x)  # type: ignore[method-assign]
    x = picture()
    linear = xai.linearize(network, x)
    assert_close(linear.transpose(torch.eye(3, dtype=torch.float64)).sum(0)[None], 3 * x.square())
    assert linear.gap(torch.ones(3, dtype=torch.float64)) < 1e-12


def test_rows_that_cannot_be_batched_come_one_by_one() -> None:
    """A group norm's backward has no batched form where its input lies channels-last."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 3), nn.SiLU(),
                                nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = picture(dtype=torch.float32)
    linear, every_one = xai.linearize(network, x, "tangent"), torch.eye(4)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.autograd.grad(linear._output, linear._leaf, every_one[:, None], retain_graph=True, is_grads_batched=True)
    assert_close(linear.transpose(every_one, together=True), linear.transpose(every_one, together=False))


class Padded(nn.Module):
    """A max-pool over a pad of -inf, as TensorFlow's "same" has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.conv(x).relu(), (0, 1, 0, 1), value=float("-inf"))
        return self.head(F.max_pool2d(x, 3, 2).mean((2, 3)))


class Standardised(nn.Module):
    """A convolution whose weights are normed by their own statistics, which no picture changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.conv.weight.view(1, 6, -1), None, None, training=True).view_as(self.conv.weight)
        return self.head(F.conv2d(x, weight, self.conv.bias).relu().mean((2, 3)))


class Recurrent(nn.Module):
    """An LSTM over the rows of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3 * SIZE, 5, batch_first=True, bidirectional=True), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.transpose(1, 2).flatten(2))[0].mean(1))


@pytest.mark.parametrize("make", [Padded, Standardised, Recurrent])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_that_timm_has_and_torchvision_has_not(make: type[nn.Module], dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make().to(dtype).eval()
    x = picture(dtype=dtype)
    linear = Linear(Model(network, size=SIZE), x)
    direction = torch.eye(4, dtype=dtype)[1]
    row, terms = linear.terms(direction)
    assert linear.gap(direction) <= COMPLETE[dtype]
    total = float((row * x[0]).double().sum() + (linear.offset * direction).double().sum())
    assert total == pytest.approx(float(network(x)[0, 1]), rel=1e-5)
    if make is not Recurrent:  # the constants within an LSTM are those of no layer
        assert sum(term.value for term in terms) == pytest.approx(float(linear.offset[0, 1]), rel=1e-5)


def test_norms_hold_their_scale_and_keep_their_mean_linear() -> None:
    """Layer norm, by hand."""
    norm = nn.LayerNorm(SIZE).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    network = nn.Sequential(norm, nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 2, bias=False).double())
    x = picture()
    linear = xai.linearize(Model(network, size=SIZE), x)
    scale = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt()
    v = picture(seed=5)
    expected = network[2](((v - v.mean(-1, keepdim=True)) * scale * norm.weight).flatten(1))
    assert_close(linear.forward(v), expected)
    assert_close(linear.offset, network[2](norm.bias.expand_as(x).flatten(1)))


def test_nothing_constant_means_no_offset() -> None:
    """All biases, running means and shifts zero: the network is F x alone."""
    network = net("plain")
    for key, value in [*network.named_parameters(), *network.named_buffers()]:
        if "bias" in key or "running_mean" in key:
            nn.init.zeros_(value)
    network.forward = lambda x: F.relu(network.norm(network.one(x))).mean((2, 3))  # type: ignore[method-assign]
    linear = xai.linearize(Model(network, size=SIZE), picture())
    assert not linear.offset.any()
    assert float((linear.transpose(torch.eye(6, dtype=torch.float64)[:1]) * picture()).sum()) == pytest.approx(
        float(linear.y[0, 0]), rel=1e-12)


def test_the_network_is_as_before() -> None:
    """Training flags, requires_grad, gradients, hooks and numbers."""
    network, x = net("plain"), picture()
    network.train()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    linear = xai.linearize(network, x)
    linear.gap(torch.ones_like(linear.y))
    linear.forward(x)
    assert network.training
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key])


def test_rows_in_one_batch_are_those_one_by_one_and_passes_are_counted() -> None:
    _, _, linear = made("gated")
    before = (linear.model.cost.forwards, linear.model.cost.backwards)
    together = linear.transpose(torch.eye(5, dtype=torch.float64))
    assert (linear.model.cost.forwards, linear.model.cost.backwards - 5) == before
    assert_close(linear.transpose(torch.eye(5, dtype=torch.float64), together=True), together)
    for k in range(5):
        assert_close(together[k : k + 1], linear.transpose(torch.eye(5, dtype=torch.float64)[k : k + 1]))


def test_probabilities_are_read_as_logarithms_and_the_softmax_keeps_its_tangent() -> None:
    network = nn.Sequential(net("plain"), nn.Softmax(1))
    x = picture()
    linear = xai.linearize(Model(network, size=SIZE), x)
    assert_close(linear.y, network[0](x).log_softmax(1))
    assert linear.gap(torch.eye(5, dtype=torch.float64)[2]) < 1e-12


@pytest.mark.parametrize(("call", "said"), [
    (lambda: xai.linearize(net("plain"), picture(), "secant"), "one of gate, tangent"),
    (lambda: xai.linearize(net("plain"), picture().expand(2, -1, -1, -1)), "one picture"),
    (lambda: made("plain")[2].transpose(torch.ones(1, 4)), r"\(k, 5\)"),
    (lambda: made("plain")[2].forward(torch.ones(1, 3, 4, 4)), r"\(k, 3, 11, 11\)"),
])
def test_bad_input_is_said_in_a_sentence(call: Callable[[], object], said: str) -> None:
    with pytest.raises(XaiError, match=said):
        call()
