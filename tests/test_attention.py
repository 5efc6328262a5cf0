"""Attention of vision transformers: what is recorded, how it rolls out, and which networks are refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from analyzers.attribution.attention_gradient import AttentionGradient
from analyzers.attribution.attention_rollout import AttentionRollout
from tests.gradient_nets import Attentive, batch_of, close_to_scale, conv_net, made, mapped, pictures
from tests.test_resolver import build
from xai import attention
from xai.attention import Watch, attend, self_attention
from xai.batch import Batch
from xai.errors import XaiError
from xai.model import Model
from xai.panels import Number
from xai.targets import Target
from xai.torchvision_import import ensure_torchvision

BOTH = [AttentionRollout, AttentionGradient]
ROUGH: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}  # transformers takes its softmax in float32


# --- transformers ---
def timm_vit(fused: bool = True, **options: Any) -> nn.Module:
    net = build("timm:vit_tiny_patch16_224", **{"img_size": 64, "depth": 3, "num_classes": 5, **options})
    for part in net.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = fused
    return sharpened(net)


def sharpened(net: nn.Module) -> nn.Module:
    """Larger queries and keys: a network fresh from its package looks at every token alike."""
    for name, weight in net.named_parameters():
        if name.endswith(("qkv.weight", "in_proj_weight")):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5 * 1.5)
    return net


def torchvision_vit() -> nn.Module:
    ensure_torchvision()
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
                            num_classes=5)
    nn.init.normal_(net.heads.head.weight)
    return sharpened(net.eval())


def huggingface_vit(how: str = "sdpa") -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
                       patch_size=8, num_labels=5, initializer_range=0.5, attn_implementation=how)
    return ViTForImageClassification(config).eval()


def attentive() -> Attentive:
    torch.manual_seed(3)
    return Attentive().eval()


class Encoder(nn.Module):
    """torch's own encoder, which takes its fused path in eval mode; patches are pooled, or a class token is read."""

    def __init__(self, pooled: bool, first: bool = True) -> None:
        super().__init__()
        self.patch, self.pooled, self.first = nn.Conv2d(3, 8, 2, 2), pooled, first
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=first)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=first), nn.Linear(8, 4)
        self.cls_token, self.place = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 9, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        x = x if self.pooled else torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = self.encoder(x) if self.first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        return self.head(x.mean(1) if self.pooled else x[:, 0])


class Folded(nn.Module):
    """Heads and pictures in one axis, heads first, which nothing in the tensor tells."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 24), nn.Linear(8, 4)
        self.place = nn.Parameter(torch.randn(1, 9, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        n = len(x)
        q, k, v = (part.reshape(n, 9, 2, 4).permute(2, 0, 1, 3).flatten(0, 1) for part in self.qkv(x).chunk(3, -1))
        weights = torch.softmax(q @ k.mT, dim=-1)
        x = x + (weights @ v).unflatten(0, (2, n)).permute(1, 2, 0, 3).flatten(2)
        return self.head(x.mean(1))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return make().eval()


NETS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # how it is made, its input's side, its layers
    "attentive": (attentive, 6, 3),
    "timm": (timm_vit, 64, 3),
    "timm, not fused": (lambda: timm_vit(False), 64, 3),
    "torchvision": (torchvision_vit, 32, 2),
    "transformers": (huggingface_vit, 32, 2),
    "transformers, eager": (lambda: huggingface_vit("eager"), 32, 2),
    "torch's encoder": (lambda: seeded(lambda: Encoder(False)), 6, 2),
    "torch's encoder, tokens first": (lambda: seeded(lambda: Encoder(False, first=False)), 6, 2),
}


def logits(output: Any) -> Tensor:
    found: Tensor = output.logits if hasattr(output, "logits") else output
    return found


def batch(net: nn.Module, size: int, n: int = 2, precision: str = "float64", **more: Any) -> Batch:
    return batch_of(made(net, size=size, precision=precision), pictures(n, size), **more)


def watched(net: nn.Module, x: Tensor) -> list[Tensor]:
    with Watch(len(x)) as watch, torch.no_grad():
        net(x)
    assert not watch.others
    return watch.found


# --- what is recorded ---
MASK = torch.tensor([[True, True, False, True], [False] * 4, [True] * 4, [False, True, False, False]])
CASES: dict[str, dict[str, Any]] = {
    "plain": {}, "scaled": {"scale": 0.3}, "causal": {"is_causal": True}, "a mask": {"attn_mask": MASK},
    "an added mask": {"attn_mask": torch.linspace(-2, 2, 16).view(4, 4)}, "grouped": {"enable_gqa": True},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_probabilities_times_the_values_are_the_fused_result(case: str, dtype: torch.dtype) -> None:
    more, g = dict(CASES[case]), torch.Generator().manual_seed(0)
    q, k, v = torch.randn((3, 2, 4, 4, 8), generator=g, dtype=torch.float64).to(dtype)
    if isinstance(mask := more.get("attn_mask"), Tensor) and mask.dtype != torch.bool:
        more["attn_mask"] = mask.to(dtype)
    if "enable_gqa" in more:
        k, v = k[:, :2], v[:, :2]
    expected = F.scaled_dot_product_attention(q, k, v, **more)
    found = attend(q, k, **more)
    v = v.repeat_interleave(2, 1) if "enable_gqa" in more else v
    assert_close((found @ v.to(found.dtype)).to(dtype), expected, **({} if dtype == torch.float64 else
                                                                     {"rtol": 0.02, "atol": 0.02}))
    rows = found.sum(-1)
    nowhere = ~more["attn_mask"].any(1) if case == "a mask" else torch.zeros(4, dtype=torch.bool)
    assert_close(rows, (~nowhere).to(rows).expand_as(rows))
    with Watch(2) as watch:
        inside = F.scaled_dot_product_attention(q, k, v[:, ::2] if "enable_gqa" in more else v, **more)
    assert_close(inside, expected, rtol=0.02, atol=0.02)
    assert_close(watch.found[0], found)


@pytest.mark.parametrize("name", NETS)
def test_a_watched_network_says_the_same_and_its_rows_add_up_to_one(name: str) -> None:
    make, size, layers = NETS[name]
    net, x = make().double(), torch.as_tensor(pictures(3, size)).double()
    with torch.no_grad():
        plain = logits(net(x))
        with Watch(3) as watch:
            inside = logits(net(x))
    assert_close(inside, plain, **ROUGH)
    assert len(watch.found) == layers
    for found in watch.found:
        assert found.shape[0] == 3
        assert found.shape[2] == found.shape[3]
        assert float(found.std(-1).min()) > 1e-4, "attention that looks at all alike proves nothing"
        assert_close(found.sum(-1), torch.ones_like(found[..., 0]), **ROUGH)
    assert torch._C._len_torch_function_stack() == 0


def test_what_is_recorded_is_what_the_packages_tell_of_themselves() -> None:
    x, kept = torch.as_tensor(pictures(2, 64)).double(), list[Tensor]()
    net = timm_vit(False).double()
    for part in net.modules():
        if hasattr(part, "attn_drop"):
            part.attn_drop.register_forward_hook(lambda m, args, out: kept.append(args[0]))
    found = watched(timm_vit().double(), x)
    with torch.no_grad():
        net(x)
    assert_close(found, kept)
    x = torch.as_tensor(pictures(2, 32)).double()
    with torch.no_grad():
        told = huggingface_vit("eager").double()(x, output_attentions=True).attentions
    assert_close(watched(huggingface_vit().double(), x), list(told), **ROUGH)
    assert_close(watched(torchvision_vit().double(), x), of_torchvision(torchvision_vit().double(), x))


def of_torchvision(net: nn.Module, x: Tensor) -> list[Tensor]:
    """By asking each attention again, for its weights a head."""
    asked: list[tuple[nn.MultiheadAttention, Tensor]] = []
    for part in net.modules():
        if isinstance(part, nn.MultiheadAttention):
            part.register_forward_pre_hook(lambda m, args: asked.append((m, args[0])))
    with torch.no_grad():
        net(x)
        return [m(y, y, y, average_attn_weights=False)[1] for m, y in list(asked)]


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_torch_multi_head_attention_is_seen_whatever_it_returns(weights: bool, batched: bool) -> None:
    torch.manual_seed(0)
    net = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(3 if batched else 1, 5, 8)
    given = x if batched else x[0]
    with torch.no_grad():
        expected = net(x, x, x, average_attn_weights=False)
        with Watch(len(x)) as watch:
            out = net(given, given, given, need_weights=weights)
    assert_close(out[0] if batched else out[0][None], expected[0])
    assert_close(watch.found, [expected[1]])
    assert not watch.folded
    assert (out[1] is None) != weights


def test_other_softmaxes_and_attention_to_others_are_no_self_attention() -> None:
    x = torch.randn(2, 3, 5, 5)
    with Watch(2) as watch:
        x.softmax(1)
        x[0, 0].softmax(-1)
        x[..., :4].softmax(-1)
        F.scaled_dot_product_attention(x[..., :4, :], x, x)
        assert not watch.found
        F.softmax(x, dim=3)
        torch.special.softmax(x, -1)
        nn.Softmax(-1)(x)
    assert_close(watch.found, [x.softmax(-1)] * 3)


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_no_mode_stays_after_a_failure(problem: type[BaseException]) -> None:
    net = attentive()
    data = batch(net, 6)
    self_attention(data.model)

    def fail(*_: Any) -> None:
        raise problem("the power went out")

    data.model.fast.module.head.register_forward_hook(fail)
    with pytest.raises(XaiError if problem is RuntimeError else problem):
        AttentionRollout().maps(data, data.bind(Target("class:1", lambda output: output[:, 1])))
    assert torch._C._len_torch_function_stack() == 0
    assert torch.backends.mha.get_fastpath_enabled()


# --- closed forms ---
class OneLayer(nn.Module):
    """One attention whose first token alone is read: everything about it can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls_token = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.randn(1, 1, 8))
        self.query, self.key, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.weights(x) @ self.tokens(x))[:, 0])

    def tokens(self, x: Tensor) -> Tensor:
        return torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch(x).flatten(2).mT], 1)

    def weights(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        return F.softmax(self.query(tokens) @ self.key(tokens).mT, dim=-1)


def test_one_layer_by_hand() -> None:
    """Rollout: (1 - r) A_0j. Relevance: (A_0j w_c . v_j)+, as the score is the sum over j of A_0j (w_c . v_j) + b_c."""
    net = seeded(OneLayer)
    assert isinstance(net, OneLayer)
    data = batch(net, 6)
    with torch.no_grad():
        row, tokens = net.weights(data.inputs)[:, 0], net.tokens(data.inputs)
    for rest in (0.0, 0.5, 0.75):
        found = mapped(AttentionRollout(residual=rest), data)
        assert_close(found, (1 - rest) * row[:, 1:].reshape(2, 3, 3))
    by_hand = (row * (tokens @ net.head.weight[2])).clamp_min(0)[:, 1:].reshape(2, 3, 3)
    assert 0 < int((by_hand == 0).sum()) < by_hand.numel()
    assert_close(mapped(AttentionGradient(), data, "class:2"), by_hand.detach())


def by_numpy(layers: Sequence[Tensor], heads: str = "mean", residual: float = 0.5) -> np.ndarray:
    """Rollout as the paper writes it: the whole matrix, each row of a layer made to add up to 1."""
    matrices = []
    for layer in layers:
        one = getattr(np, heads)(layer.double().numpy(), axis=1)
        one = one / one.sum(-1, keepdims=True)
        matrices.append(residual * np.eye(one.shape[-1]) + (1 - residual) * one)
    whole = matrices[0]
    for one in matrices[1:]:
        whole = np.matmul(one, whole)
    return whole


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
@pytest.mark.parametrize("name", NETS)
def test_rollout_by_numpy(name: str, heads: str) -> None:
    make, size, _ = NETS[name]
    net = make()
    data = batch(net, size)
    found = AttentionRollout(heads=heads).maps(data, data.bind(Target("class:1", logits)))
    whole = by_numpy(told(name, net, data.inputs), heads)
    side = found.values.shape[-1]
    assert side == (4 if size > 6 else 3)
    expected = torch.as_tensor(whole[:, 0, 1:]).reshape(2, side, side)
    assert_close(found.values, expected, **ROUGH, check_dtype=False)
    shares = [panel.value for panel in found.panels if isinstance(panel, Number)]
    assert_close(torch.tensor(shares, dtype=torch.float64), torch.as_tensor(whole[:, 0, 0]), **ROUGH)
    assert_close(found.values.sum((1, 2)) + torch.tensor(shares), torch.ones(2), **ROUGH, check_dtype=False)


def told(name: str, net: nn.Module, x: Tensor) -> list[Tensor]:
    """The probabilities by other means, where there are any."""
    if name == "attentive":
        assert isinstance(net, Attentive)
        return [a.detach() for a in by_hand(net, x)[1]]
    if name == "torchvision":
        return of_torchvision(net, x)
    if "transformers" in name:
        net.set_attn_implementation("eager")
        with torch.no_grad():
            return list(net(x, output_attentions=True).attentions)
    return watched(net, x)


def by_hand(net: Attentive, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The network's forward with every attention as a matrix of its own: scores and (n, heads, T, T) of each."""
    x = net.patch(x).flatten(2).transpose(1, 2)
    x = torch.cat([net.token.expand(len(x), -1, -1), x], 1) + net.place
    q, k, v = net.qkv(net.norm(x)).chunk(3, -1)
    first = torch.softmax(q @ k.mT / math.sqrt(8), -1)[:, None]
    x = x + first[:, 0] @ v
    second = torch.softmax(q @ k.mT, -1)[:, None]
    x = x + net.scale * (second[:, 0] @ v)
    wide = F.linear(net.norm(x), net.heads.in_proj_weight, net.heads.in_proj_bias)
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in wide.chunk(3, -1))
    third = torch.softmax(q @ k.mT / 2, -1)
    x = x + net.heads.out_proj((third @ v).transpose(1, 2).flatten(2))
    x = x + net.mlp(net.last(x))
    return net.head(net.last(x)[:, 0]), [first, second, third]


def relevance(layers: Sequence[Tensor], score: Tensor) -> Tensor:
    """The whole matrix R, as the paper updates it."""
    slopes = torch.autograd.grad(score, list(layers), retain_graph=True)
    whole = torch.eye(layers[0].shape[-1]).to(score).expand(len(layers[0]), -1, -1)
    for layer, slope in zip(layers, slopes, strict=True):
        whole = whole + (layer * slope).relu().mean(1) @ whole
    return whole.detach()


def test_relevance_by_a_forward_written_by_hand() -> None:
    net = attentive()
    data = batch(net, 6, 3)
    scores, layers = by_hand(net, data.inputs)
    assert_close(scores, net(data.inputs))
    found = {}
    for c in range(4):
        whole = relevance(layers, scores[:, c].sum())
        found[c] = mapped(AttentionGradient(), data, f"class:{c}")
        assert_close(found[c], whole[:, 0, 1:].reshape(3, 3, 3))
        assert float(found[c].min()) >= 0
    assert float((found[0] - found[1]).abs().max()) > 0.1 * float(found[0].max())
    rollout = [mapped(AttentionRollout(), data, f"class:{c}") for c in (0, 1)]
    assert_close(rollout[0], rollout[1], rtol=0, atol=0)


# --- which token is read, and where the patches lie ---
READ: dict[str, tuple[Callable[[], nn.Module], int, int, tuple[int, ...]]] = {  # side, prefix, tokens that are read
    "class token": (timm_vit, 64, 1, (0,)),
    "class and distillation token": (
        lambda: build("timm:deit_tiny_distilled_patch16_224", img_size=64, depth=2), 64, 2, (0, 1)),
    "class token before registers": (lambda: timm_vit(reg_tokens=4), 64, 5, (0,)),
    "pooled patches": (lambda: timm_vit(class_token=False, global_pool="avg"), 64, 0, tuple(range(16))),
    "pooled patches after registers": (
        lambda: timm_vit(class_token=False, reg_tokens=2, global_pool="avg"), 64, 2, tuple(range(2, 18))),
    "pooled patches after a class token that is not read": (
        lambda: timm_vit(global_pool="avg"), 64, 1, tuple(range(1, 17))),
    "pooled patches of torch's encoder": (lambda: seeded(lambda: Encoder(True)), 6, 0, tuple(range(9))),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_the_row_is_that_of_what_the_head_reads_and_only_patches_are_shown(name: str) -> None:
    make, size, prefix, read = READ[name]
    net = make()
    data = batch(net, size)
    tokens = self_attention(data.model)
    assert (tokens.prefix, tokens.read) == (prefix, read)
    layers = watched(net, data.inputs)
    side = tokens.grid[0]
    row = torch.as_tensor(by_numpy(layers))[:, list(read)].mean(1)
    assert_close(mapped(AttentionRollout(), data), row[:, prefix:].reshape(2, side, side))
    with Watch(2, graph=True) as watch:
        score = net.requires_grad_(False)(data.inputs)[:, 1].sum()
    whole = relevance(watch.found, score) - torch.eye(tokens.count, dtype=torch.float64)
    expected = whole[:, list(read)].mean(1)[:, prefix:].reshape(2, side, side)
    assert_close(mapped(AttentionGradient(), data), expected)


def test_a_classifier_that_was_born_zero_does_not_hide_what_it_reads() -> None:
    net = timm_vit()
    nn.init.zeros_(net.head.weight)
    model = made(net, size=64)
    assert self_attention(model).read == (0,)
    assert not net.head.weight.any()
    assert not model.fast.module.head.weight.any()


def test_the_grid_is_found_where_the_layer_to_look_at_has_no_tokens() -> None:
    net, x = attentive(), pictures(2)
    data = batch_of(made(net), x)
    other = batch_of(Model(net, mean=[0.4] * 3, std=[0.3] * 3, size=6, precision="float64", layer="patch"), x)
    assert other.model.view().layout == "nchw"
    assert_close(mapped(AttentionRollout(), other), mapped(AttentionRollout(), data))


def test_pictures_of_another_shape_are_asked_about_anew() -> None:
    net = timm_vit(dynamic_img_size=True)
    model = made(net, size=64)
    assert self_attention(model).grid == (4, 4)
    wide = torch.zeros(1, 3, 64, 96, dtype=torch.float64)
    assert self_attention(model, wide).grid == (4, 6)
    assert self_attention(model).grid == (4, 4)


# --- batches ---
@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("name", [*NETS, "folded"])
def test_a_map_is_the_same_alone_and_in_parts(name: str, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make, size = (lambda: seeded(Folded), 6) if name == "folded" else NETS[name][:2]
    net = make()
    together = batch(net, size, 3, "float32")
    target = Target("class:1")
    values = method().maps(together, together.bind(target)).values
    assert values.dtype == torch.float32
    alone = batch_of(together.model, pictures(3, size)[2:])
    close_to_scale(method().maps(alone, alone.bind(target)).values, values[2:])
    monkeypatch.setattr(attention, "ROOM", 1)
    before = (together.model.cost.forwards, together.model.cost.backwards)
    close_to_scale(method().maps(together, together.bind(target)).values, values)
    spent = (together.model.cost.forwards - before[0], together.model.cost.backwards - before[1])
    assert spent == ((3, 0) if method is AttentionRollout else (3, 3))


def test_half_precision_gives_a_map_in_full() -> None:
    data = batch(timm_vit(), 64, precision="bfloat16")
    exact = batch(timm_vit(), 64)
    for method in BOTH:
        found = mapped(method(), data)
        assert found.dtype == torch.float32
        close_to_scale(found, mapped(method(), exact), 0.05)


# --- refusals ---
REFUSED: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "convolutions": (conv_net, 6, "in which no self-attention is seen"),
    "ResNet": (lambda: build("torchvision:resnet18"), 64, "in which no self-attention is seen"),
    "Swin of torchvision": (lambda: build("torchvision:swin_t"), 224, "whose attention runs in windows"),
    "Swin of timm": (lambda: build("timm:swin_tiny_patch4_window7_224"), 224, "whose attention runs in windows"),
    "several resolutions": (lambda: build("timm:levit_128s"), 224, "at several resolutions"),
    "attention over channels": (lambda: build("timm:xcit_nano_12_p16_224"), 224, "over other tokens than the patches"),
    "fewer keys than queries": (lambda: build("timm:pvt_v2_b0"), 224, "over other tokens than the patches"),
    "a pool by attention": (lambda: build("timm:vit_base_patch16_siglip_224", img_size=64, depth=2, num_classes=5), 64,
                            "over other tokens than the patches"),
}


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("name", REFUSED)
def test_networks_without_attention_over_the_picture_are_refused(name: str, method: Any) -> None:
    make, size, said = REFUSED[name]
    model = Model(make(), mean=[0.4] * 3, std=[0.3] * 3, size=size, spec="some:net")
    with pytest.raises(XaiError) as told:
        method().check(model)
    sentence = str(told.value)
    assert sentence.startswith("the model must be a transformer whose every self-attention runs over all patches")
    assert "got some:net, " in sentence
    assert said in sentence
    assert "se gradcam" in sentence


def test_without_hooks_or_gradients_the_model_is_refused_first() -> None:
    for method in BOTH:
        for missing in sorted(method.needs & {"hooks", "gradients"}):
            model = Model(attentive(), mean=[0.4] * 3, std=[0.3] * 3, size=6,
                          capabilities={"forward", "hooks", "gradients"} - {missing})
            with pytest.raises(XaiError, match="which does not"):
                method().check(model)


def test_a_target_beside_the_attention_is_refused() -> None:
    class Beside(Attentive):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super().forward(x), x.mean((1, 2, 3))[:, None]], 1)

    data = batch(seeded(Beside), 6)
    assert float(mapped(AttentionGradient(), data).max()) > 0
    with pytest.raises(XaiError, match="its attention has no part in"):
        AttentionGradient().maps(data, data.bind(Target("beside", lambda output: output.detach()[:, 4])))
    assert not mapped(AttentionGradient(), data, "class:4").any()


def test_a_head_that_reads_the_class_token_and_the_pooled_patches_starts_at_both_alike() -> None:
    tokens = attention.Tokens(heads=(1,), count=6, prefix=2, grid=(2, 2), read=(0, 2, 3, 4, 5))
    row = tokens.start(torch.zeros(1, 1, dtype=torch.float64))[0]
    assert_close(row, torch.tensor([0.5, 0, 0.125, 0.125, 0.125, 0.125], dtype=torch.float64))
    pooled = attention.Tokens(heads=(1,), count=5, prefix=1, grid=(2, 2), read=(1, 2, 3, 4))
    assert_close(pooled.start(torch.zeros(1, 1))[0], torch.tensor([0, 0.25, 0.25, 0.25, 0.25]))
