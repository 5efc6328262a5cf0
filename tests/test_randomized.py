"""Networks drawn anew: which stages there are, what changes, what stays, and what is refused."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.gradient_nets import Attentive, Residual, batch_of, conv_net, made, pictures, unusual
from xai.errors import XaiError
from xai.model import Model
from xai.modules import hash_state
from xai.randomized import MOMENTS, randomized, shares_of, spread, stages
from xai.targets import Target


def values(model: Model, key: str) -> Tensor:
    assert model._module is not None
    return model._module.state_dict()[key]


def changed(model: Model, twin: Model) -> set[str]:
    """The names in the state dict whose tensors differ."""
    assert model._module is not None
    assert twin._module is not None
    new = twin._module.state_dict()
    return {key for key, value in model._module.state_dict().items() if not torch.equal(value, new[key])}


# --- stages ---
def test_stages_run_from_the_output_to_the_input() -> None:
    assert stages(made(conv_net())) == ("7", "3", "0")


class Classed(nn.Module):
    """A class token and positions of its own, attention whose output projection torch never runs as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.heads = nn.Linear(8, 4), nn.MultiheadAttention(8, 2, batch_first=True)
        self.token, self.patch = nn.Parameter(torch.randn(1, 1, 8)), nn.Conv2d(3, 8, 2, 2)
        nn.init.normal_(self.heads.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.head((x + self.heads(x, x, x, need_weights=False)[0])[:, 0])


def test_what_a_container_holds_itself_is_a_stage_of_the_container() -> None:
    torch.manual_seed(0)
    model = made(Classed())
    assert stages(model) == ("head", "heads", "patch", "")
    assert changed(model, randomized(model, [""], 0)) == {"token"}
    own = changed(model, randomized(model, ["heads"], 0))
    assert {"heads.in_proj_weight", "heads.out_proj.weight"} <= own
    assert all(key.startswith("heads.") for key in own)


def test_a_stage_in_which_nothing_could_change_is_joined_with_the_next_one_down() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    assert stages(made(net)) == ("4", "0"), "a fresh norm holds only ones and zeros"
    assert stages(made(nn.Sequential(nn.BatchNorm2d(3), *conv_net())))[-1] == "1", "the last goes with the one before"
    flat = made(conv_net())
    assert flat._module is not None
    with torch.no_grad():
        for p in flat._module.parameters():
            p.fill_(1.0)
    assert stages(flat) == ()
    assert changed(flat, randomized(flat, stages(flat), 0)) == set()


class Twice(nn.Module):
    """One convolution that runs first and last but one, with a tied head beside a part that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.between = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.one, self.two, self.aside = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(5, 5)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.between(self.again(x)).relu()).mean((2, 3))
        return self.two(self.one(x).relu())


def test_a_module_that_runs_twice_and_tied_weights_count_once() -> None:
    torch.manual_seed(0)
    model = made(Twice())
    assert stages(model) == ("two", "one", "again", "between")
    twin = randomized(model, ["two"], 0)
    assert changed(model, twin) == {"one.weight", "two.weight", "two.bias"}
    assert twin._module is not None
    assert twin._module.one.weight is twin._module.two.weight
    assert changed(model, randomized(model, ["one"], 0)) == {"one.bias"}, "the tied tensor is nearer to the output"
    everything = changed(model, randomized(model, stages(model), 0))
    assert {"aside.weight", "aside.bias", "again.weight", "between.weight"} <= everything


@pytest.mark.parametrize("norm", [torch.nn.utils.parametrizations.weight_norm,
                                  torch.nn.utils.parametrizations.orthogonal])
def test_a_parametrisation_belongs_to_the_module_that_bears_it(norm: Any) -> None:
    net = conv_net()
    norm(net[3])
    model = made(net, precision="float32")
    assert stages(model) == ("7", "3", "0")
    twin = randomized(model, ["3"], 0)
    assert twin._module is not None
    assert not torch.equal(twin._module[3].weight, net[3].weight)
    assert torch.isfinite(twin(torch.rand(2, 3, 6, 6))).all()


def test_steps_are_evenly_spaced_with_both_ends() -> None:
    assert spread(27, 8) == [1, 5, 8, 12, 16, 20, 23, 27]
    assert spread(3, 8) == [1, 2, 3]
    assert (spread(5, 1), spread(1, 4), spread(0, 4)) == ([5], [1], [])
    assert shares_of("abc", 2) == [("a",), ("a", "b", "c")]


# --- what changes and what stays ---
def test_the_original_stays_as_it_is_to_the_bit() -> None:
    net = unusual(Residual)
    assert net._module is not None
    before, hooks = hash_state(net._module.state_dict()), len(net._module._forward_pre_hooks)
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    told, state = net(x), (torch.get_rng_state(), repr(np.random.get_state()), random.getstate())
    twin = randomized(net, stages(net), 3)
    twin(x)
    assert hash_state(net._module.state_dict()) == before
    assert torch.equal(net(x), told)
    assert not torch.equal(twin(x), told)
    assert len(net._module._forward_pre_hooks) == hooks
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (repr(np.random.get_state()), random.getstate()) == state[1:]


def test_values_are_shuffled_within_their_tensor_and_moments_stay_pairs() -> None:
    model = unusual(Residual)
    assert model._module is not None
    twin = randomized(model, stages(model), 0)
    for key in ("stem.weight", "conv.weight", "head.weight", "head.bias", "bn1.bias", "bn2.running_mean"):
        assert not torch.equal(values(model, key), values(twin, key))
        assert torch.equal(values(model, key).flatten().sort()[0], values(twin, key).flatten().sort()[0])
        assert values(twin, key).dtype == torch.float64
    old, new = ({tuple(pair) for pair in torch.stack([values(m, f"bn1.{k}") for k in MOMENTS], 1).tolist()}
                for m in (model, twin))
    assert old == new


def test_it_depends_on_the_seed_and_cascades_share_what_they_share() -> None:
    model = unusual(Residual)
    names = stages(model)
    few, many = randomized(model, names[:2], 7), randomized(model, names, 7)
    for key in changed(model, few):
        assert torch.equal(values(few, key), values(many, key))
    assert randomized(model, names, 7).weights_hash == many.weights_hash
    assert randomized(model, names[::-1], 7).weights_hash == many.weights_hash
    assert randomized(model, names, 8).weights_hash != many.weights_hash
    assert randomized(model, (), 7).weights_hash == model.weights_hash


def test_the_copy_passes_for_the_model_in_all_else() -> None:
    net = conv_net()
    for p in net.parameters():
        p.requires_grad_(False)
    model = Model(net, mean=[0.4] * 3, std=[0.3] * 3, size=6, labels=tuple("abcd"), layer="3", head="multi-label",
                  precision="float64", spec="my:net")
    twin = randomized(model, stages(model), 0)
    assert (twin.spec, twin.weights) == ("my:net (randomised)", "randomised")
    assert (twin.labels, twin.dtype, twin.device) == (model.labels, torch.float64, model.device)
    assert twin.head is model.head
    assert twin.preprocessing is model.preprocessing
    assert twin.view() is model.view()
    assert twin.view().name == "3"
    assert twin._module is not None
    assert not any(p.requires_grad for p in twin._module.parameters())
    before = (model.cost.forwards, model.cost.backwards)
    batch = batch_of(model, pictures()).like(model=twin)
    assert batch.model is twin
    batch.output()
    batch.input_gradient(batch.inputs, batch.bind(Target("class:1")))
    assert (model.cost.forwards - before[0], model.cost.backwards - before[1]) == (4, 2)


def test_the_folded_form_of_the_copy_is_that_of_its_own_weights() -> None:
    model = unusual(Residual)
    assert model.fast.folded, "the original is folded before the copy is made"
    twin = randomized(model, stages(model), 0)
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    assert twin._module is not None
    assert_close(twin(x), twin._module.eval()(x), rtol=1e-9, atol=1e-9)


def test_a_transformer_can_be_drawn_anew() -> None:
    model = unusual(Attentive)
    twin = randomized(model, stages(model), 0)
    assert stages(model)[0] == "head"
    assert "place" in changed(model, twin)
    assert torch.isfinite(twin(torch.rand(2, 3, 6, 6, dtype=torch.float64))).all()


# --- refusals ---
def test_a_model_that_can_only_be_run_gives_the_sentence() -> None:
    bare = Model(forward=conv_net(), mean=[0.4] * 3, std=[0.3] * 3, size=6, spec="onnx:net")
    for ask in (lambda: stages(bare), lambda: randomized(bare, ["0"], 0)):
        with pytest.raises(XaiError, match="must be one that gives access to its layers.*onnx:net"):
            ask()


def test_a_network_that_cannot_be_copied_gives_the_sentence() -> None:
    net = conv_net()
    net.lock = threading.Lock()
    with pytest.raises(XaiError, match="must be one that can be copied"):
        randomized(made(net, precision="float32"), ["7"], 0)


def test_a_stage_that_there_is_not_gives_the_sentence() -> None:
    with pytest.raises(XaiError, match="must be one of '7', '3', '0'; got 'fc'"):
        randomized(made(conv_net()), ["fc"], 0)
