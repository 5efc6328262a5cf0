"""Architecture diagrams: exact sums, named axes, repeats, skips and heads, and a picture in which no text overlaps."""

from __future__ import annotations

import itertools
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import xai
from reports import diagram as drawing
from reports.diagram_rows import plan, width_of
from tests.command_line import CommandLine
from tests.headless_chromium import BINARY, chromium, opened
from xai.circuit import Box, Diagram, Flow
from xai.diagram import DRAWN, diagram
from xai.errors import XaiError
from xai.model import Model

SVG = "{http://www.w3.org/2000/svg}"


class Double(nn.Sequential):
    """Twice convolution, normalisation, ReLU."""

    def __init__(self, given: int, made: int) -> None:
        conv = lambda a, b: (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True))  # noqa: E731
        super().__init__(*conv(given, made), *conv(made, made))


class UNet(nn.Module):
    """Three levels down and up, a skip at each."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.pool = Double(3, 8), Double(8, 16), Double(16, 32), nn.MaxPool2d(2)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.back2, self.back1, self.head = Double(32, 16), Double(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(self.pool(one))
        x = self.back2(torch.cat([two, self.up2(self.three(self.pool(two)))], 1))
        return self.head(self.back1(torch.cat([one, self.up1(x)], 1)))


def model(module: nn.Module, size: int = 32) -> Model:
    return Model(module.eval(), mean=[0.5] * 3, std=[0.5] * 3, size=size)


SPECS = {
    "alexnet": "torchvision:alexnet", "resnet50": "torchvision:resnet50", "vit": "timm:vit_tiny_patch16_224",
    "swin": "timm:swin_tiny_patch4_window7_224",
}  # fmt: skip
_MADE: dict[str, tuple[Model, Diagram]] = {}


def made(name: str) -> tuple[Model, Diagram]:
    """One of the five networks with random weights, and its diagram; each once."""
    if name not in _MADE:
        own = model(UNet(), 64) if name == "unet" else xai.load(SPECS[name], weights="random")
        _MADE[name] = own, diagram(own)
    return _MADE[name]


FIVE = (*SPECS, "unet")


def axes(wires: Any) -> list[tuple[str, int]]:
    return [(axis.name, axis.size) for axis in wires]


def box(flow: Flow, name: str) -> Box:
    return next(b for b in flow.boxes if b.name == name)


def counted(own: Model) -> int:
    """Multiply-adds by torch's own counter, which sees attention only where it is written out."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with own.opened() as net, torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
        net.requires_grad_(False)(own.example())  # the counter's hooks do not bear a weight that is handed on
    torch.backends.mha.set_fastpath_enabled(fast)
    return count.get_total_flops() // 2


# --- numbers ---
@pytest.mark.parametrize("name", FIVE)
def test_sums_are_exact(name: str) -> None:
    """Parameters are the network's, multiply-adds those of an independent count; every box is counted once, and a
    block that is opened holds what its box holds."""
    own, drawn = made(name)
    with own.opened() as net:
        assert drawn.parameters == sum(p.numel() for p in net.parameters())
    assert drawn.unread == 0
    assert sum(b.parameters for b in drawn.flow.boxes) == drawn.parameters
    assert sum(b.multiply_adds for b in drawn.flow.boxes) == drawn.multiply_adds == counted(own)
    flows = (drawn.flow, *drawn.blocks)
    seen = set()
    for b in itertools.chain.from_iterable(flow.boxes for flow in flows):
        if b.inside is not None and drawn.blocks[b.inside].name == b.name:
            inner = drawn.blocks[b.inside].boxes
            assert sum(i.parameters for i in inner) * b.count == b.parameters
            assert sum(i.multiply_adds for i in inner) * b.count == b.multiply_adds
            seen.add(b.inside)
    assert len(seen) == len(drawn.blocks)
    for flow in flows:
        for stage in flow.stages:
            part = flow.boxes[stage.first : stage.last + 1]
            assert stage.parameters == sum(b.parameters for b in part)
            assert stage.multiply_adds == sum(b.multiply_adds for b in part)


def test_published_counts() -> None:
    """AlexNet: 61,100,840 and 714 M; ResNet-50: 25,557,032 and 4.09 G; ViT-Ti/16: 5.7 M and 1.26 G; Swin-T: 28.3 M and
    4.5 G."""
    assert (made("alexnet")[1].parameters, made("alexnet")[1].multiply_adds) == (61_100_840, 714_188_480)
    assert (made("resnet50")[1].parameters, made("resnet50")[1].multiply_adds) == (25_557_032, 4_089_184_256)
    assert made("vit")[1].parameters == 5_717_416
    assert round(made("vit")[1].multiply_adds / 1e9, 2) == 1.25
    assert made("swin")[1].parameters == 28_288_354
    assert round(made("swin")[1].multiply_adds / 1e9, 1) == 4.5


@pytest.mark.parametrize(("name", "blocks"), [("resnet50", [3, 4, 6, 3]), ("vit", [12]), ("swin", [2, 2, 6, 2])])
def test_repeats(name: str, blocks: list[int]) -> None:
    """Stages hold the blocks that the papers say, in few boxes."""
    drawn = made(name)[1]
    assert [s.blocks for s in drawn.flow.stages if s.blocks] == blocks
    counts = [b.count for b in drawn.flow.boxes if b.count > 1]
    assert counts == ([2, 3, 5, 2] if name == "resnet50" else blocks)  # the first Bottleneck has a projection
    assert len(drawn.flow.boxes) <= 16


# --- axes ---
def test_axes_of_a_convolutional_network() -> None:
    flow = made("alexnet")[1].flow
    assert axes(flow.inputs[0]) == [("batch", 1), ("channel", 3), ("height", 224), ("width", 224)]
    first, pool = flow.boxes[0], flow.boxes[1]
    assert axes(first.output) == [("batch", 1), ("channel", 64), ("height", 55), ("width", 55)]
    assert (first.acts, pool.acts) == ((1, 2, 3), (2, 3))  # a pool repeats itself over channels
    flat = next(b for b in flow.boxes if b.role == "rearrange")
    assert axes(flat.output) == [("batch", 1), ("channel", 9216)]
    assert flat.wiring == ((0, 0), (1, 1), (2, 1), (3, 1))
    last = flow.boxes[-1]
    assert (axes(last.output), last.acts) == ([("batch", 1), ("channel", 1000)], (1,))


def test_attention_shows_its_heads() -> None:
    """Tokens twice between queries and keys, three heads beside them; the values come past."""
    block = next(f for f in made("vit")[1].blocks if f.kind == "Block")
    kinds = [b.kind for b in block.boxes]
    assert [k for k in kinds if k in ("queries · keysᵀ", "softmax", "weights · values")] == [
        "queries · keysᵀ", "softmax", "weights · values"]  # fmt: skip
    scores, soft, value = block.boxes[kinds.index("queries · keysᵀ") :][:3]
    square = [("batch", 1), ("head", 3), ("token", 197), ("token", 197)]
    assert axes(scores.output) == axes(soft.output) == square
    assert (scores.acts, soft.acts) == ((2, 3), (3,))
    assert axes(scores.inputs[0]) == axes(value.output) == [("batch", 1), ("head", 3), ("token", 197), ("channel", 64)]
    assert scores.multiply_adds == value.multiply_adds == 3 * 197 * 197 * 64
    assert len(value.reads) == 2
    assert sum(b.kind == "add" for b in block.boxes) == 2
    assert block.boxes[-1].reads[0] < len(block.boxes) - 2  # a residual connection
    head = next(b for b in made("vit")[1].flow.boxes if b.kind == "Block")
    assert "3 heads" in head.note
    assert axes(head.output) == [("batch", 1), ("token", 197), ("channel", 192)]


def test_windows_of_swin() -> None:
    block = next(f for f in made("swin")[1].blocks if f.kind == "SwinTransformerBlock")
    scores = next(b for b in block.boxes if b.kind == "queries · keysᵀ")
    assert axes(scores.output) == [("window", 64), ("head", 3), ("token", 49), ("token", 49)]
    qkv = next(b for b in block.boxes if b.name.endswith("qkv"))
    assert axes(qkv.inputs[0]) == [("window", 64), ("token", 49), ("channel", 96)]
    assert qkv.acts == (2,)
    whole = [b.note for b in made("swin")[1].flow.boxes if b.kind == "SwinTransformerBlock"]
    assert ["roll" in note for note in whole] == [True, True, True, False]  # 7x7: one window, nothing to shift
    assert [note.split(" heads")[0].split(" ")[-1] for note in whole] == ["3", "6", "12", "24"]


def test_skips_of_a_unet() -> None:
    """Each concatenation reads the encoder's tensor of its level, and the axis along which it does is named."""
    flow = made("unet")[1].flow
    joins = [(i, b) for i, b in enumerate(flow.boxes) if b.role == "join"]
    assert [b.note for _, b in joins] == ["along channel: 16 + 16", "along channel: 8 + 8"]
    for (i, join), (level, channels, side) in zip(joins, (("two", 16, 32), ("one", 8, 64)), strict=True):
        skip, up = join.reads
        assert flow.boxes[skip].name.startswith(level)
        assert up == i - 1
        wanted = [("batch", 1), ("channel", channels), ("height", side), ("width", side)]
        assert axes(flow.boxes[skip].output) == axes(join.inputs[0]) == wanted
        assert join.acts == (1,)
    lanes = plan(flow, 0).lanes
    assert len({lane.x for lane in lanes}) == len(lanes) == 2


@pytest.mark.parametrize("name", FIVE)
def test_edges_carry_what_is_made(name: str) -> None:
    """What a box reads was made before it; a single reader of a single tensor reads the very shape."""
    drawn = made(name)[1]
    for flow in (drawn.flow, *drawn.blocks):
        for i, b in enumerate(flow.boxes):
            assert len(b.reads) == len(b.inputs)
            assert all(-len(flow.inputs) <= r < i for r in b.reads)
            for read, wires in zip(b.reads, b.inputs, strict=True):
                source = flow.inputs[-1 - read] if read < 0 else flow.boxes[read].output
                if read >= 0 and flow.boxes[read].role == "rearrange":  # may give several tensors
                    assert np.prod([a.size for a in source]) == np.prod([a.size for a in wires])
                else:
                    assert source == wires


# --- any network ---
class Odd(nn.Module):
    """Weights used twice, weights never used, parameters without a module, a constant made by a module, in-place steps,
    einsum, a product with a fixed matrix, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.never = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(5, 5)
        self.same, self.scale = nn.Conv2d(8, 8, 1), nn.Parameter(torch.ones(8, 1, 1))
        self.table, self.mixed = nn.Linear(2, 8), nn.Parameter(torch.randn(8, 6))

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = F.relu(self.conv(x), inplace=True)
        x = self.same(self.same(x)) * self.scale
        x += self.table(torch.ones(2))[:, None, None]
        y = torch.einsum("bchw,cd->bdhw", x, self.mixed).flatten(2)
        y = (y @ torch.ones(y.shape[-1], 4)).softmax(-1)
        return {"scores": y.mean(-1), "more": [x]}


class Unseen(nn.Module):
    """A module whose code no torch function shows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(2 * x.detach().numpy())


class Recurrent(nn.Module):
    """Rows of the picture, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(96, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.permute(0, 2, 3, 1).flatten(2))[0][:, -1])


def test_odd_networks() -> None:
    own = model(Odd())
    drawn = diagram(own)
    assert drawn.unread == 30
    assert sum(b.parameters for b in drawn.flow.boxes) + drawn.unread == drawn.parameters
    assert drawn.multiply_adds == counted(own) == sum(b.multiply_adds for b in drawn.flow.boxes)
    assert "scale" in {b.name for b in drawn.flow.boxes} | {n for b in drawn.flow.boxes for n in b.note.split(" · ")}
    xml(drawing.svg(drawn))


def test_what_no_function_shows_is_a_box() -> None:
    """Its shapes and what it reads are known, its inside is not."""
    drawn = diagram(model(nn.Sequential(nn.Conv2d(3, 4, 3), Unseen(), nn.Conv2d(4, 2, 3))))
    assert [(b.kind, b.role) for b in drawn.flow.boxes] == [
        ("Conv2d", "layer"), ("Unseen", "opaque"), ("Conv2d", "layer")]  # fmt: skip
    assert drawn.flow.boxes[1].reads == (0,)
    assert drawn.flow.boxes[2].reads == (1,)


def test_a_recurrence_is_counted_by_hand() -> None:
    """Four gates of 16, each of 96 + 16 inputs, at 32 rows, and the last map."""
    assert diagram(model(Recurrent())).multiply_adds == 32 * 4 * 16 * (96 + 16) + 16 * 4


def test_shared_weights_count_once() -> None:
    """A block that runs three times is one block with its parameters once and its products three times."""

    class Thrice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(3, 8, 1), Double(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for _ in range(3):
                x = self.block(x)
            return x

    own = model(Thrice())
    drawn = diagram(own)
    assert sum(b.parameters for b in drawn.flow.boxes) == drawn.parameters == 32 + 2 * (576 + 16)
    assert drawn.multiply_adds == counted(own)
    assert [b.count for b in drawn.flow.boxes] == [1, 3]


def test_long_networks_stay_small() -> None:
    """Three hundred layers of as many sizes are one box that says so; where no two neighbours are alike, a box says how
    many are left out; the sums hold."""
    alike = diagram(model(nn.Sequential(*(nn.Conv2d(3 + i, 4 + i, 1) for i in range(300))), 4))
    assert [(b.count, b.note) for b in alike.flow.boxes] == [(300, "1×1 · of several sizes")]
    drawn = diagram(model(nn.Sequential(*(nn.Conv2d(3 + i, 4 + i, 1 + 2 * (i % 2), 1, i % 2) for i in range(300))), 4))
    assert len(drawn.flow.boxes) == DRAWN + 1
    assert any("further boxes" in b.kind for b in drawn.flow.boxes)
    assert sum(b.parameters for b in drawn.flow.boxes) == drawn.parameters
    xml(drawing.svg(drawn))


def test_the_network_is_left_as_it_was() -> None:
    """No hook stays, also where the network fails; the failure is a sentence."""
    net = UNet().train()
    own = Model(net, mean=[0.5] * 3, std=[0.5] * 3, size=64)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    diagram(own)
    with pytest.raises(XaiError, match=r"must be one that .* can run; got"):
        diagram(own, (63, 65))
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_a_model_that_only_runs_is_refused() -> None:
    with pytest.raises(XaiError, match=r"The|the model must be"):
        diagram(Model(forward=lambda x: x.mean((2, 3)), mean=[0.5] * 3, std=[0.5] * 3, size=8))


ZOO = (
    "torchvision:vgg11", "torchvision:squeezenet1_0", "torchvision:mobilenet_v3_small",
    "torchvision:densenet121", "torchvision:googlenet", "torchvision:shufflenet_v2_x0_5",
    "torchvision:swin_v2_t", "torchvision:efficientnet_b0", "torchvision:regnet_y_400mf",
    "torchvision:vit_b_32", "torchvision:convnext_tiny", "torchvision:inception_v3", "torchvision:maxvit_t",
    "timm:mixer_s32_224", "timm:resnetv2_50", "timm:xcit_nano_12_p16_224",
    "timm:convmixer_768_32", "timm:pit_ti_224", "timm:coat_tiny", "timm:levit_128s", "timm:mobilevit_xxs",
    "timm:hrnet_w18_small", "timm:dla34", "timm:poolformer_s12", "timm:efficientformer_l1",
    "timm:volo_d1_224", "timm:cspresnet50", "timm:nfnet_l0", "timm:crossvit_9_240", "timm:tnt_s_patch16_224",
    "timm:edgenext_xx_small", "xai:planted", "xai:photo20", "timm:eva02_tiny_patch14_224",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("spec", ZOO)
def test_zoo(spec: str) -> None:
    """Any architecture gives a diagram with exact sums, in which nothing overlaps."""
    own = xai.load(spec, weights=None if spec.startswith("xai:") else "random")
    drawn = diagram(own)
    assert sum(b.parameters for b in drawn.flow.boxes) + drawn.unread == drawn.parameters
    assert sum(b.multiply_adds for b in drawn.flow.boxes) == drawn.multiply_adds == counted(own)
    assert len(drawn.flow.boxes) <= DRAWN + 1
    xml(drawing.svg(drawn))
    assert clashes(drawn) == []


# --- the picture ---
def xml(text: str) -> ET.Element:
    """Well-formed, alone, without anything that runs or asks."""
    root = ET.fromstring(text)
    tags = {e.tag.removeprefix(SVG) for e in root.iter()}
    assert tags <= {"svg", "title", "desc", "style", "rect", "path", "circle", "text"}, tags
    assert all(not key.startswith("on") and "href" not in key for e in root.iter() for key in e.attrib)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "url(" not in text
    return root


def clashes(drawn: Diagram) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap, and texts that leave the picture."""
    lines = sorted(drawing.words(drawn), key=lambda w: w.box[1])
    found = [(w.text, "the border") for w in lines if w.box[0] < 0 or w.box[2] > 1000]
    for i, one in enumerate(lines):
        for two in lines[i + 1 :]:
            if two.box[1] >= one.box[3]:
                break
            if one.box[0] < two.box[2] and two.box[0] < one.box[2] and two.box[1] < one.box[3]:
                found.append((one.text, two.text))
    return found


@pytest.mark.parametrize("name", FIVE)
def test_no_text_overlaps(name: str) -> None:
    drawn = made(name)[1]
    assert clashes(drawn) == []
    root = xml(drawing.svg(drawn))
    assert root.get("viewBox", "").startswith("0 0 1000 ")
    assert root.find(f"{SVG}title") is not None
    assert root.find(f"{SVG}desc") is not None


def test_the_check_for_overlaps_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows pushed together clash."""
    from reports import diagram_rows

    monkeypatch.setattr(diagram_rows, "TEXT_END", 990)
    long = replace(made("alexnet")[1].flow.boxes[0], kind="Conv2d" * 30)
    flow = replace(made("alexnet")[1].flow, boxes=(long, *made("alexnet")[1].flow.boxes[1:]))
    assert clashes(replace(made("alexnet")[1], flow=flow))


def test_numbers_shown_are_those_of_the_diagram() -> None:
    """Every box's and stage's parameters and multiply-adds stand in the picture, in order."""
    drawn = made("resnet50")[1]
    texts = [e.text or "" for e in xml(drawing.svg(drawn)).iter(f"{SVG}text")]
    numbers = [int(t.replace("\u202f", "")) for t in texts if t.replace("\u202f", "").isdigit()]
    wanted = [n for b in drawn.flow.boxes for n in (b.parameters, b.multiply_adds) if n]
    rest = iter(numbers)
    assert all(any(n == w for n in rest) for w in wanted)
    assert any("25\u202f557\u202f032 parameters · 4\u202f089\u202f184\u202f256 multiply-adds" in t for t in texts)


def test_the_same_bytes() -> None:
    own = model(UNet(), 64)
    assert drawing.svg(diagram(own)) == drawing.svg(diagram(own)) == drawing.svg(diagram(model(UNet(), 64)))


ATTACK = "</text><script>alert(1)</script>&\"'\x00\x1b\ud800\n<![CDATA["


def test_hostile_names_are_text() -> None:
    drawn = made("unet")[1]
    flow = replace(drawn.flow, boxes=tuple(replace(b, name=ATTACK, kind=ATTACK, note=ATTACK) for b in drawn.flow.boxes),
                   stages=tuple(replace(s, name=ATTACK, kind=ATTACK) for s in drawn.flow.stages))  # fmt: skip
    bad = replace(drawn, name=ATTACK, kind=ATTACK, flow=flow, notes=(ATTACK,))
    root = xml(drawing.svg(bad))
    assert any("<script>" in (e.text or "") for e in root.iter(f"{SVG}text"))
    assert clashes(bad) == []


def test_a_module_of_any_name() -> None:
    net = nn.Sequential()
    net.add_module("<b>&\"'", nn.Conv2d(3, 4, 3))
    net.add_module("x" * 500, type("Ünïcode" * 40, (nn.Conv2d,), {})(4, 4, 3))
    drawn = diagram(model(net))
    assert {b.name for b in drawn.flow.boxes} >= {"<b>&\"'"}
    xml(drawing.svg(drawn))
    assert clashes(drawn) == []


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Writes the file and names it, prints JSON, refuses by a sentence."""
    line = CommandLine(tmp_path, monkeypatch, capfd)
    path = Path(line.fine("models", "diagram", "torchvision:squeezenet1_1").out.strip())
    assert path == Path("xai-out/diagram-torchvision-squeezenet1_1.svg")
    xml(path.read_text(encoding="utf-8"))
    line.fine("models", "diagram", "torchvision:resnet18", "--out", "r.svg", "--size", "64x96")
    assert "height 64 × width 96" in Path("r.svg").read_text(encoding="utf-8")
    made = line.fine("models", "diagram", "torchvision:squeezenet1_1", "--json").out
    assert json.loads(made)["parameters"] == 1_235_496
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.svg", "xai-out"]
    for bad in ("0", "ax3", "12x", "1e3", "224x0"):
        line.refused("models", "diagram", "torchvision:squeezenet1_1", "--size", bad, names=repr(bad))
    line.refused("models", "diagram", "torchvision:squeezenet1_1", "--size", "4", names="(1, 3, 4, 4)")
    line.refused("models", "diagram", "torchvision:squeezenet1_1", "--out", "nowhere/r.svg", names="nowhere/r.svg")
    line.refused("models", "diagram", "torchvision:squeezenet1_1", "--out", str(tmp_path), names=str(tmp_path))
    line.refused("models", "diagram", "torchvision:nonsense", names="nonsense")


# --- in a browser ---
MEASURE = """[...document.querySelectorAll('text')].map(t => { const b = t.getBBox(); return [b.x, b.y, b.x + b.width,
b.y + b.height, t.firstChild.data] })"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for the file."""
    if BINARY is None:
        pytest.skip("needs chromium")
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots stay: $XAI_ARTEFACTS, or the test's own folder."""
    folder = Path(os.environ["XAI_ARTEFACTS"]) if "XAI_ARTEFACTS" in os.environ else tmp_path_factory.mktemp("diagrams")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("name", FIVE)
def test_in_a_browser(name: str, browser: Any, artefacts: Path) -> None:
    """Drawn in light and dark; real texts stay within the room that was planned, and none covers another; nothing is
    asked of the network, nothing complained of."""
    drawn = made(name)[1]
    path = drawing.write(drawn, artefacts / f"{name}.svg")
    height = int(ET.parse(path).getroot().get("height", "0"))
    shots: dict[str, np.ndarray] = {}
    with opened(browser, path, width=1000, height=height) as tab:
        for scheme in ("light", "dark"):
            tab.scheme(scheme)
            shots[scheme] = tab.screenshot()
            Image.fromarray(shots[scheme]).save(artefacts / f"{name}-{scheme}.png")
        measured = tab.evaluate(MEASURE)
        assert tab.complaints == []
        assert len(tab.requests) == 1
    assert shots["light"].mean() > 200
    assert shots["dark"].mean() < 60
    planned = drawing.words(drawn)
    assert len(measured) == len(planned)
    for (left, _, right, _, text), words in zip(measured, planned, strict=True):
        assert words.text == text
        assert right - left <= width_of(text, words.size, words.font) + 1, text
    _apart(measured)


def _apart(measured: list[list[Any]]) -> None:
    order = sorted(measured, key=lambda m: m[1])
    for i, (l0, t0, r0, b0, one) in enumerate(order):
        for l1, t1, r1, b1, two in order[i + 1 :]:
            if t1 >= b0 - 4:  # the room of a line holds its accents
                break
            assert l1 >= r0 or r1 <= l0 or min(b0, b1) - max(t0, t1) <= 4, (one, two)


CASES: dict[str, Callable[[], nn.Module]] = {
    "norm first": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True), 3, enable_nested_tensor=False),
    "norm last": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2, enable_nested_tensor=False),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_torchs_own_transformer(case: str) -> None:
    """MultiheadAttention is opened: heads beside tokens, products counted, layers of one kind collapsed."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.body, self.head = nn.Conv2d(3, 16, 8, 8), CASES[case](), nn.Linear(16, 5)
            self.first = "first" in case

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).permute(*((0, 2, 1) if self.first else (2, 0, 1)))
            return self.head(self.body(x).mean(1 if self.first else 0))

    own = model(Patches())
    drawn = diagram(own)
    assert drawn.multiply_adds == counted(own)
    repeated = next(b for b in drawn.flow.boxes if b.kind == "TransformerEncoderLayer")
    assert repeated.count == (3 if "first" in case else 2)
    inner = drawn.blocks[repeated.inside or 0]
    scores = next(b for b in inner.boxes if b.kind == "queries · keysᵀ")
    heads = 4 if "first" in case else 2
    assert [a for a in axes(scores.output) if a[0] == "head" or a[0] == "batch·head"] in (
        [("head", heads)], [("batch·head", heads)])  # fmt: skip
    assert axes(scores.output)[-2:] == [("token", 16), ("token", 16)]
