"""The resolver: which layer, grid and layout, on real architectures and on small networks made to be awkward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from xai.errors import XaiError
from xai.heads import resolve_head
from xai.layers import Capture, LayerView
from xai.resolver import list_layers, resolve_layer
from xai.torchvision_import import ensure_torchvision
from xai.trace import redraw_zero_weights


def top1(output: Any) -> Tensor:
    logits = resolve_head(output).read(output)
    return logits.flatten(1).max(dim=1).values


def build(spec: str, **options: Any) -> nn.Module:
    """A network of torchvision or timm with seeded random weights."""
    source, name = spec.split(":")
    torchvision = ensure_torchvision()
    torch.manual_seed(0)
    if source == "torchvision":
        return torchvision.models.get_model(name, weights=None, **options).eval()
    import timm

    return timm.create_model(name, pretrained=False, **options).eval()


def picture(size: int = 224, count: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def raw_gradcam(net: nn.Module, view: LayerView, x: Tensor) -> Tensor:
    net.requires_grad_(False)
    with Capture(net, [view]) as capture:
        output = net(x)
    value = capture.values[view]
    (slope,) = torch.autograd.grad(top1(output).sum(), value)
    return (view.to_map(slope).mean((2, 3), keepdim=True) * view.to_map(value.detach())).sum(1)


def check_map(net: nn.Module, view: LayerView, x: Tensor) -> None:
    raw = raw_gradcam(net, view, x)
    assert raw.shape == (len(x), *view.grid)
    assert torch.isfinite(raw).all()
    assert (raw.flatten(1).std(dim=1) > 0).all()


REG4 = {"img_size": 112, "num_classes": 9}
REAL: list[tuple[str, dict[str, int], int, str, str, tuple[int, int], int]] = [
    ("torchvision:resnet18", {}, 224, "layer4.1", "nchw", (7, 7), 0),
    ("torchvision:squeezenet1_0", {}, 224, "features.12", "nchw", (13, 13), 0),
    ("torchvision:densenet121", {}, 224, "features.norm5", "nchw", (7, 7), 0),
    ("torchvision:mobilenet_v3_small", {}, 224, "features.12", "nchw", (7, 7), 0),
    ("torchvision:swin_t", {}, 224, "norm", "nhwc", (7, 7), 0),
    ("timm:swin_tiny_patch4_window7_224", {}, 224, "norm", "nhwc", (7, 7), 0),
    ("timm:vit_tiny_patch16_224", {}, 224, "blocks.11.norm1", "tokens", (14, 14), 1),
    ("timm:deit_tiny_distilled_patch16_224", {}, 224, "blocks.11.norm1", "tokens", (14, 14), 2),
    ("timm:vit_small_patch14_reg4_dinov2", REG4, 112, "blocks.11.norm1", "tokens", (8, 8), 5),
    ("timm:vit_wee_patch16_reg1_gap_256", {}, 256, "blocks.13", "tokens", (16, 16), 1),
    ("timm:vit_tiny_r_s16_p8_224", {}, 224, "blocks.11.norm1", "tokens", (7, 7), 1),
    ("timm:nextvit_small", {}, 224, "norm", "nchw", (7, 7), 0),
    ("timm:levit_128s", {}, 224, "stages.1.blocks.2", "tokens", (7, 7), 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "options", "size", "name", "layout", "grid", "prefix"), REAL, ids=[row[0] for row in REAL]
)
def test_real_architectures(
    spec: str, options: dict[str, int], size: int, name: str, layout: str, grid: tuple[int, int], prefix: int
) -> None:
    net, x = build(spec, **options), picture(size)
    view = resolve_layer(net, x, top1)
    assert (view.name, view.layout, view.grid, view.prefix) == (name, layout, grid, prefix)
    assert "gradient reaches" in view.reason
    check_map(net, view, x)


def test_the_value_is_what_a_plain_hook_clones() -> None:
    """resnet18: the block's output is that of the whole stage. densenet121: what an in-place ReLU overwrites."""
    for name, module in (("resnet18", "layer4"), ("densenet121", "features")):
        net, x, kept = build(f"torchvision:{name}"), picture(), []
        view = resolve_layer(net, x, top1)
        handle = net.get_submodule(module).register_forward_hook(lambda m, a, out, kept=kept: kept.append(out.clone()))
        with Capture(net, [view]) as capture, torch.no_grad():
            net(x)
        handle.remove()
        assert_close(capture.values[view].detach(), kept[0], rtol=0, atol=0)
        assert (kept[0].min() < 0) == (name == "densenet121")


def test_a_zero_classifier_is_named_and_can_be_redrawn() -> None:
    net, x = build("timm:mixer_s32_224"), picture()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    view = resolve_layer(net, x, top1)
    assert (view.name, view.layout, view.grid) == ("norm", "tokens", (7, 7))
    assert "weights of head are all zero" in view.reason
    for name, value in net.state_dict().items():
        assert_close(value, before[name], rtol=0, atol=0)
    assert redraw_zero_weights(net) == ["head"]
    again = resolve_layer(net, x, top1)
    assert again.name == "norm"
    assert "zero" not in again.reason
    check_map(net, again, x)


class Vgg(nn.Module):
    """Convolutions, in-place ReLUs, pools and a classifier that sees positions."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for low, high in ((3, 8), (8, 12), (12, 16)):
            layers += [nn.Conv2d(low, high, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((4, 4))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def test_a_pool_is_passed_over_for_what_it_pools() -> None:
    net, x = Vgg().eval(), picture(32)
    view = resolve_layer(net, x, top1)
    assert (view.name, view.grid) == ("features.7", (8, 8))
    check_map(net, view, x)
    assert resolve_layer(net, x, top1, "features.8").grid == (4, 4)


class Awkward(nn.Module):
    """One ReLU called three times, a block that returns a dict inside a tuple, gates, attention weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.block = Pair()
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.query = nn.Linear(8, 8)
        self.weights = nn.Dropout()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.relu(self.stem(x) + 0.1)
        _, inner = self.block(x)
        x = self.relu(inner["map"])
        x = x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()
        tokens = x.flatten(2).transpose(1, 2)
        query = self.query(tokens)
        weights = self.weights((query @ tokens.transpose(1, 2)).softmax(-1)[:, None])
        tokens = self.relu(weights[:, 0] @ tokens)
        return {"aux": tokens[:, 0], "out": self.head(tokens.mean(1))}


class Pair(nn.Module):
    """A convolution whose result comes inside a tuple and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[int, dict[str, Tensor]]:
        return 7, {"map": self.conv(x) * 2}


def test_calls_paths_and_tensors_that_are_no_maps() -> None:
    torch.manual_seed(0)
    net, x = Awkward().eval(), picture(32, 2)
    seen = [(view.name, view.call, view.path, view.grid, view.layout) for view in list_layers(net, x)]
    assert ("relu", 0, "", (8, 8), "nchw") in seen
    assert ("relu", 1, "", (8, 8), "nchw") in seen
    assert ("relu", 2, "", (8, 8), "tokens") in seen
    assert ("block", 0, "[1]['map']", (8, 8), "nchw") in seen
    assert not {"weights", "squeeze", "head"} & {name for name, *_ in seen}
    pair, first = resolve_layer(net, x, top1, "block"), resolve_layer(net, x, top1, "relu:0")
    assert (pair.path, first.call) == ("[1]['map']", 0)
    with Capture(net, [pair, first]) as capture:
        net(x)
    assert capture.values[first].min() >= 0
    assert capture.values[pair].min() < 0  # before the in-place ReLU that follows
    check_map(net, resolve_layer(net, x, top1), x)


class Encoder(nn.Module):
    """Tokens as (T, n, K), with unnamed ones before and after the patches; one of those alone is read."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.before, self.after = nn.Parameter(torch.randn(before, 1, 16)), nn.Parameter(torch.randn(after, 1, 16))
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).permute(2, 0, 1)
        tokens = torch.cat([self.before.expand(-1, len(x), -1), tokens, self.after.expand(-1, len(x), -1)])
        tokens = self.norm(tokens)
        read = 0 if len(self.before) else -1
        return self.head((tokens + self.attention(tokens, tokens, tokens)[0])[read])


@pytest.mark.parametrize(("before", "after"), [(1, 0), (0, 5), (2, 3), (7, 4)])
def test_tokens_that_nothing_declares_are_found_by_what_they_look_at(before: int, after: int) -> None:
    torch.manual_seed(0)
    net, x = Encoder(before, after).eval(), torch.randn(2, 3, 48, 32)
    view = resolve_layer(net, x, top1)
    assert (view.name, view.layout, view.grid, view.prefix) == ("norm", "tokens_first", (6, 4), before)
    check_map(net, view, x)


def test_a_map_of_scores_is_passed_over_and_a_dead_target_still_finds_the_layer() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU()]
    net, x = nn.Sequential(*layers).eval(), picture(16)
    assert resolve_layer(net, x, lambda output: output.sum((1, 2, 3))).name == "1"
    pooled = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.no_grad():
        layers[2].weight[3], layers[2].bias[3] = 0, -1  # the ReLU after it never opens for class 3
    assert resolve_layer(pooled, x, top1).name == "1"
    dead = resolve_layer(pooled, x, lambda output: output[:, 3])
    assert dead.name == "1"
    assert "the target's own gradient is zero everywhere" in dead.reason


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens", "tokens_first", "channels_tokens"])
def test_layouts_round_trip(layout: str) -> None:
    maps = torch.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    prefix = 0 if layout in ("nchw", "nhwc") else 2  # and one token after the patches
    view = LayerView("x", (4, 5), 3, layout, prefix)
    like = {"tokens": (2, 23, 3), "tokens_first": (23, 2, 3), "channels_tokens": (2, 3, 23)}.get(layout, (1,))
    held = view.from_map(maps, torch.zeros(like))
    read = view.to_map(held)
    assert_close(read, maps, rtol=0, atol=0)
    assert read.untyped_storage().data_ptr() == held.untyped_storage().data_ptr()  # a view, no copy


def test_capture_cuts_below_the_lowest_layer_and_clones() -> None:
    net, x = build("torchvision:resnet18").requires_grad_(False), picture(64, 2)
    views = [LayerView("layer3", (4, 4), 256, "nchw"), LayerView("layer4.1.bn2", (2, 2), 512, "nchw")]
    with Capture(net, views) as capture:
        output = net(x)
    lower, upper = capture.values[views[0]], capture.values[views[1]]
    assert lower.is_leaf
    assert not upper.is_leaf
    assert upper.min() < 0  # an addition and a ReLU in place follow
    assert all(slope.any() for slope in torch.autograd.grad(output.sum(), [lower, upper]))
    with torch.no_grad():
        assert_close(output.detach(), net(x), rtol=0, atol=0)


def test_capture_ignores_recomputation() -> None:
    from torch.utils.checkpoint import checkpoint

    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(lambda y: self.second(self.first(y).relu()), x, use_reentrant=False).mean((2, 3))

    net, view = Recomputed(), LayerView("first", (6, 6), 4, "nchw")
    with Capture(net, [view], cut=False) as capture:
        output = net(picture(8).requires_grad_())
        value = capture.values[view]
        output.sum().backward()
    assert capture.values[view] is value


def test_flags_gradients_and_hooks_are_put_back() -> None:
    net, x = build("torchvision:resnet18", num_classes=10).train(), picture(64)
    net.layer1.eval()
    net.conv1.weight.requires_grad_(False)
    flags = {name: child.training for name, child in net.named_modules()}
    wanted = {name: weight.requires_grad for name, weight in net.named_parameters()}
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    with torch.no_grad():
        inside = resolve_layer(net, x, top1)
    with torch.inference_mode():
        assert resolve_layer(net, x.clone(), top1) == inside
    with pytest.raises(ZeroDivisionError):
        resolve_layer(net, x, lambda output: 1 / 0)
    with pytest.raises(RuntimeError):
        resolve_layer(net, picture(64)[:, :2], top1)
    with pytest.raises(RuntimeError), Capture(net, [inside]):
        net(picture(64)[:, :2])
    assert {name: child.training for name, child in net.named_modules()} == flags
    assert {name: weight.requires_grad for name, weight in net.named_parameters()} == wanted
    assert all(weight.grad is None for weight in net.parameters())
    for name, value in net.named_buffers():
        assert_close(value, buffers[name], rtol=0, atol=0)
    for child in net.modules():
        assert not child._forward_hooks
        assert not child._forward_pre_hooks


def test_names_that_do_not_serve_give_one_sentence() -> None:
    net, x = build("torchvision:resnet18", num_classes=10), picture(64)
    for layer, words in (
        ("layer5", "must be a module of the network; got 'layer5'. Did you mean layer"),
        ("fc", "must have an output with spatial extent; got 'fc' with shape (1, 10)"),
        ("avgpool", "got 'avgpool' with shape (1, 512, 1, 1)"),
        ("layer4.1.relu:2", "which runs 2 time(s)"),
    ):
        with pytest.raises(XaiError) as caught:
            resolve_layer(net, x, top1, layer)
        assert words in str(caught.value)
    with pytest.raises(XaiError, match="must have a module whose output has spatial extent"):
        resolve_layer(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 5)), x, top1)


def test_a_named_layer_says_where_the_gradient_is_zero_and_takes_a_grid() -> None:
    net, x = build("timm:vit_tiny_patch16_224"), picture()
    assert "gradient is zero" in resolve_layer(net, x, top1, "blocks.11").reason
    assert "zero" not in resolve_layer(net, x, top1, "blocks.10").reason
    view = resolve_layer(net, x, top1, "blocks.10", grid=(7, 28))
    assert (view.grid, view.prefix) == ((7, 28), 1)


def test_compiled_and_parallel_wrappers_keep_the_authors_names() -> None:
    net, x = nn.DataParallel(Vgg()).eval(), picture(32)
    assert resolve_layer(net, x, top1, "features.4").name == "module.features.4"


def test_heads() -> None:
    scores, planes = torch.zeros(2, 10), torch.zeros(2, 21, 8, 8)
    for output, kind, size, path in (
        (scores, "classes", 10, ""),
        ((scores, torch.zeros(2, 7)), "classes", 10, "[0]"),
        ({"aux": planes, "out": planes}, "map", 21, "['out']"),
        ([torch.zeros(2, 1)], "regression", 1, "[0]"),
        (torch.zeros(2, 3, 8, 8), "image", 3, ""),
        ([{"labels": torch.zeros(3).long(), "boxes": torch.zeros(3, 4)}], "boxes", 4, "[0]['boxes']"),
        (
            {"last_hidden_state": torch.zeros(2, 5, 16), "pooler_output": torch.zeros(2, 16)},
            "embedding",
            16,
            "['pooler_output']",
        ),
    ):
        head = resolve_head(output)
        assert (head.kind, head.size, head.path) == (kind, size, path)
        assert isinstance(head.read(output), Tensor)
        assert head.reason
    assert resolve_head(scores, "multi-label").kind == "multi-label"
    assert resolve_head({"a": scores, "b": planes}, path="b").size == 21
    for wrong in ({"kind": "clases"}, {"path": "logits"}):
        with pytest.raises(XaiError, match="must be one of"):
            resolve_head({"a": scores}, **wrong)
    with pytest.raises(XaiError, match="floating-point tensor"):
        resolve_head([1, "two"])


def test_transformers_outputs_are_read_and_rebuilt() -> None:
    pytest.importorskip("transformers")
    from transformers.modeling_outputs import ImageClassifierOutput

    scores = torch.randn(2, 5)
    output = ImageClassifierOutput(logits=scores, hidden_states=(torch.zeros(2, 4, 3), torch.ones(2, 4, 3)))
    assert resolve_head(output).path == "['logits']"
    view = LayerView("x", (2, 2), 3, "tokens", path="['hidden_states'][1]")
    changed = view.put(output, torch.full((2, 4, 3), 5.0))
    assert type(changed) is ImageClassifierOutput
    assert_close(view.pick(changed), torch.full((2, 4, 3), 5.0))
    assert_close(view.pick(output), torch.ones(2, 4, 3))
    assert changed.logits is scores


def test_torchvision_imports_twice_and_before_timm() -> None:
    assert ensure_torchvision() is ensure_torchvision()
    assert build("timm:test_resnet", num_classes=3)(picture(32)).shape == (1, 3)
