"""AblationCAM: closed forms, a slow loop with a hook for each channel, the same numbers whichever way it is run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from analyzers.attribution.ablationcam import AblationCAM
from tests.gradient_nets import EXACT, Attentive, batch_of, close_to_scale, made, mapped, pictures
from tests.traced_nets import Choosy, Late, Tokens, large, model_of, small
from xai.batch import Batch
from xai.errors import OutOfMemory, XaiError
from xai.images import load_images
from xai.layers import Capture, LayerView
from xai.model import Model
from xai.subject import Subject
from xai.tail import Above, Tail
from xai.targets import Bound, Target

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def head_net(pooled: bool) -> nn.Module:
    """conv, in-place ReLU (the layer), a pooled or flattened linear head."""
    torch.manual_seed(3)
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4)] if pooled else [nn.Flatten(), nn.Linear(7 * 36, 4)]
    return nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.ReLU(inplace=True), *end)


def slow(batch: Batch, view: LayerView, bound: Bound) -> Tensor:
    """The maps (n, h, w): a forward of the caller's own network for each channel, zeroed by a hook."""
    net: Any = batch.model._module
    part, calls = net.get_submodule(view.name), [0]
    zeroed: list[int] = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        calls[0] += 1
        if calls[0] - 1 != view.call:
            return None
        tensor = view.pick(output).clone()
        view.to_map(tensor)[:, zeroed] = 0
        return view.put(output, tensor)

    def score(channel: list[int]) -> Tensor:
        calls[0], zeroed[:] = 0, channel
        with torch.no_grad():
            return bound(batch.model._read(net(batch.inputs.clone())))

    with Capture(net, [view], cut=False) as capture, torch.no_grad():
        net(batch.inputs.clone())
    maps = view.to_map(capture.values[view])
    handle = part.register_forward_hook(hook)
    try:
        losses = torch.stack([score([]) - score([k]) for k in range(view.channels)], 1)
    finally:
        handle.remove()
    return (losses[:, :, None, None] * maps).sum(1)


def against_the_slow_one(model: Model, batch: Batch, layer: str, target: str = "class:1", share: float = 1e-8) -> None:
    view = batch.view(layer)
    close_to_scale(mapped(AblationCAM(layer), batch, target), slow(batch, view, batch.bind(Target(target))), share)


# --- closed forms ---
@pytest.mark.parametrize("pooled", [True, False])
def test_a_channels_weight_is_what_its_activations_add_to_the_score_on_a_linear_head(pooled: bool) -> None:
    net = head_net(pooled)
    batch = batch_of(made(net), pictures(2))
    with torch.no_grad():
        maps = net[1](net[0](batch.inputs))  # type: ignore[index]  # a Sequential
    weight = net[-1].weight[1].detach()  # type: ignore[index]
    shares = weight * maps.mean((2, 3)) if pooled else (weight.view(7, 6, 6) * maps).sum((2, 3))
    assert Tail.of(batch.model, batch.view("1")).affine
    assert_close(mapped(AblationCAM("1"), batch), (shares[:, :, None, None] * maps).sum(1), **EXACT)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("target", ["class:2", "top1", "class:0 - class:3"])
def test_the_closed_form_is_the_loop(pooled: bool, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(head_net(pooled))
    batch = batch_of(model, pictures(3))
    closed = mapped(AblationCAM("1"), batch, target)
    against_the_slow_one(model, batch, "1", target)
    tail = Tail.of(model, batch.view("1"))
    monkeypatch.setattr(tail, "affine", False)
    before = model.cost.forwards
    assert_close(mapped(AblationCAM("1"), batch, target), closed, **EXACT)
    assert model.cost.forwards - before == 3 * 8


def test_a_curved_target_on_an_affine_head_is_looped() -> None:
    model = made(head_net(True))
    batch = batch_of(model, pictures(2))
    bound = batch.bind(Target("odd", lambda output: output[:, 0] ** 2 + output.prod(1)))
    found = AblationCAM("1").maps_for(batch, [bound])[0].values
    close_to_scale(found, slow(batch, batch.view("1"), bound), 1e-8)


# --- the slow loop ---
@pytest.mark.parametrize("name", ["residual", "pre-activation", "normed", "pairs", "sliding", "branches", "plain"])
def test_it_is_the_slow_loop_at_every_layer(name: str) -> None:
    model = small(name)
    views = model.layers()
    for view in views[:3] + views[-3:]:
        batch = batch_of(model, pictures(2, 12))
        if view.path or view.call:
            continue
        layer = f"{view.name}:0"
        if slow(batch, batch.view(layer), batch.bind(Target("class:1"))).abs().max() > 1e-9:
            against_the_slow_one(model, batch, layer)


@pytest.mark.parametrize("call", [0, 1])
def test_a_module_that_runs_twice_is_ablated_where_it_is_named(call: int) -> None:
    model = small("residual")
    against_the_slow_one(model, batch_of(model, pictures(2, 12)), f"relu:{call}")


@pytest.mark.parametrize("kind", [Tokens, Attentive])
def test_a_transformer_keeps_its_class_token(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = model_of(kind().eval(), 12 if kind is Tokens else 6)
    batch = batch_of(model, pictures(2, 12 if kind is Tokens else 6))
    tail = Tail.of(model, batch.view("auto"))
    assert tail.cut == (kind is Tokens)
    against_the_slow_one(model, batch, "auto")
    assert batch.view("auto").prefix == 1


@pytest.mark.parametrize(("kind", "layer"), [(Choosy, "stem"), (Late, "stem")])
def test_a_network_that_cannot_be_cut_is_run_whole(kind: type[nn.Module], layer: str) -> None:
    torch.manual_seed(0)
    model = model_of(kind().eval(), 8)
    batch = batch_of(model, pictures(2, 8))
    batch.output()
    before = model.cost.forwards
    against_the_slow_one(model, batch, layer)
    assert model.cost.forwards - before == 2 * 9 + 2  # and the batch's own again, with the layer recorded
    assert (AblationCAM(layer).passes(model).forwards, AblationCAM(layer).passes(model).backwards) == (9, 0)


def test_a_mobilenets_early_layer_in_float32() -> None:
    model = large("mobilenet_v2")
    batch = batch_of(model, np.random.default_rng(1).random((1, 3, 64, 64), dtype=np.float32))
    view = batch.view("features.3")
    expected = slow(batch, view, batch.bind(Target("class:1")))
    # a weight is the difference of two scores that are rounded
    rounding = 2e-6 * float(batch.output().abs().max() * batch.activations(view.name).abs().sum(1).max())
    assert expected.abs().max() > 1e2 * rounding
    assert_close(mapped(AblationCAM(view.name), batch), expected, rtol=0, atol=rounding)


def test_resnets_last_stage_in_float32() -> None:
    model = large("resnet18")
    batch = batch_of(model, np.random.default_rng(1).random((2, 3, 64, 64), dtype=np.float32))
    maps, weight = batch.activations("layer4"), model._module.fc.weight[1]  # type: ignore[union-attr,index]
    shares = (weight * maps.mean((2, 3))).detach()
    close_to_scale(mapped(AblationCAM("layer4"), batch), (shares[:, :, None, None] * maps).sum(1))


# --- several targets, cost, memory ---
@pytest.mark.parametrize("layer", ["conv", "act", "more"])
def test_all_targets_come_of_the_same_passes(layer: str) -> None:
    model = small("plain")
    batch = batch_of(model, pictures(2, 12))
    method = AblationCAM(layer)
    bounds = [batch.bind(Target(text)) for text in ("class:1", "class:3 - class:1", "top1")]
    batch.activations(layer)
    before = model.cost.forwards, model.cost.backwards
    maps = [made.values for made in method.maps_for(batch, bounds)]
    planned = method.passes(model)
    assert (model.cost.forwards - before[0], model.cost.backwards - before[1]) == (
        2 * planned.forwards, 2 * planned.backwards)
    assert (planned.forwards, planned.backwards) == ((0, 1) if layer == "more" else (9, 0))
    close_to_scale(maps[0], mapped(method, batch), 1e-9)
    close_to_scale(maps[1], mapped(method, batch, "class:3") - maps[0], 1e-9)


@pytest.mark.parametrize("kind", ["cut", "whole"])
def test_where_memory_runs_out_fewer_go_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = small("plain") if kind == "cut" else model_of(Choosy().eval(), 12)
    layer = "conv" if kind == "cut" else "stem"
    batch = batch_of(model, pictures(1, 12))
    expected, right, sizes = mapped(AblationCAM(layer), batch), Above.__call__, []

    def short(self: Above, maps: Tensor) -> Tensor:
        sizes.append(len(maps))
        if len(maps) > 2:
            raise OutOfMemory("the memory must be enough")
        return right(self, maps)

    monkeypatch.setattr(Above, "__call__", short)
    close_to_scale(mapped(AblationCAM(layer), batch), expected, 1e-9)
    assert sizes[0] > 2
    assert sum(size for size in sizes if size <= 2) == 9
    monkeypatch.setattr(Above, "__call__", lambda self, maps: (_ for _ in ()).throw(OutOfMemory("too little")))
    with pytest.raises(OutOfMemory):
        mapped(AblationCAM(layer), batch)


@pytest.mark.parametrize("rows", [1, 2, 4, 64])
def test_the_map_does_not_depend_on_how_many_go_at_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("residual")
    batch = batch_of(model, pictures(2, 12))
    expected = mapped(AblationCAM("pool"), batch)
    monkeypatch.setattr(Tail, "rows", lambda *more: rows)
    close_to_scale(mapped(AblationCAM("pool"), batch), expected, 1e-9)


def test_the_activations_of_the_batch_are_not_written_to() -> None:
    model = small("plain")
    batch = batch_of(model, pictures(2, 12))
    kept = batch.activations("conv").clone()
    mapped(AblationCAM("conv"), batch)
    assert batch.activations("conv").equal(kept)


def test_a_network_without_a_spatial_layer_gets_a_sentence_and_no_plan() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 4))
    model = made(net)
    assert AblationCAM().passes(model).work == 0
    with pytest.raises(XaiError, match="must have a module whose output has spatial extent"):
        AblationCAM()(Subject((model,), load_images(pictures(1))))
