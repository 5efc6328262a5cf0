"""The model explorer: its numbers are the network's, its page is safe and small, it works by key, mouse and touch."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from reports import explorer
from tests.command_line import NORMAL, CommandLine
from tests.headless_chromium import BINARY, Page, chromium, opened
from tests.test_page_browser import ATTACK, AXE, CONTRAST
from xai import explore
from xai.errors import XaiError
from xai.explore import describe
from xai.images import load_images
from xai.model import Model
from xai.zoo import shipped
from xai.zoo.loading import load

SHARED = Path(__file__).resolve().parents[2] / "shared"
LIMIT = 8_000_000
needs_chromium = pytest.mark.skipif(BINARY is None, reason="needs chromium")


def embedded(page: str) -> dict[str, Any]:
    """The description that stands in a page, its arrays as float64 tensors of the shape they say."""
    found = re.search(r'<script type="application/json" id="network">(.*?)</script>', page, re.DOTALL)
    assert found is not None

    def read(value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {"shape", "data"}:
            array = np.frombuffer(base64.b64decode(value["data"]), "<f4").reshape(value["shape"])
            return torch.from_numpy(array.astype(np.float64))
        if isinstance(value, dict):
            return {k: read(v) for k, v in value.items()}
        return [read(v) for v in value] if isinstance(value, list) else value

    return dict(read(json.loads(found[1])))


class Mixed(nn.Module):
    """Every kind of step: padding, stride, dilation, groups, depthwise, batch normalisation, a sum, both pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.SiLU(inplace=True)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.mean = nn.AvgPool2d(2, padding=1)
        self.last = nn.AdaptiveAvgPool2d(1)
        self.hidden, self.fc = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = self.relu(self.grouped(x) + self.depthwise(x))
        x = self.last(self.mean(self.pool(x))).flatten(1)
        out: Tensor = self.fc(torch.tanh(self.hidden(x)))
        return out


def mixed() -> Model:
    torch.manual_seed(3)
    net = Mixed()
    net.norm.running_mean = torch.randn(8)
    net.norm.running_var = torch.rand(8) + 0.5
    return Model(net.eval(), mean=(0.5,) * 3, std=(0.25,) * 3, size=32, labels=("a", "b", "c", "d"))


@pytest.fixture(scope="module")
def tinyvgg() -> Model:
    return load("xai:tinyvgg", device="cpu")


@pytest.fixture(scope="module")
def page(tinyvgg: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the shipped network on a sample photograph."""
    made = describe(tinyvgg, load_images("sample:coffee")[0])
    return explorer.write(made, tmp_path_factory.mktemp("explorer") / "tiny.html", "xai models explore")


def hooked(module: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What every module returned, by its name, and the output."""
    kept: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        return lambda _, args, out: kept.update({name: out.clone()})

    for name, child in module.named_modules():
        child.register_forward_hook(hook(name))
    output: Tensor = module(x)
    return kept, output


def recomputed(stage: dict[str, Any], read: list[Tensor]) -> Tensor | None:
    """A stage's values from those of the stages that it reads, by torch's own functions in float64; None for another
    kind."""
    x = read[0][None]
    if stage["kind"] == "conv":
        return F.conv2d(x, stage["weight"], stage["bias"], stage["stride"], stage["padding"], stage["dilation"],
                        stage["groups"])[0]
    if stage["op"] == "maxpool":
        return F.max_pool2d(x, stage["kernel"], stage["stride"], stage["padding"])[0]
    if stage["op"] == "avgpool":
        return F.avg_pool2d(x, stage["kernel"], stage["stride"], stage["padding"])[0]
    if stage["kind"] == "norm":
        return F.batch_norm(x, stage["mean"], stage["var"], stage["scale"], stage["shift"], eps=stage["eps"])[0]
    if stage["kind"] == "add":
        return read[0] + read[1]
    if stage["kind"] == "linear":
        read_ = stage["read"] if "read" in stage else read[0]
        return (stage["weight"].flatten(1) @ read_.flatten() + stage["bias"])[:, None, None]
    if stage["kind"] == "activation":
        return {"relu": F.relu, "silu": F.silu, "tanh": torch.tanh}[stage["op"]](read[0])
    return None


@pytest.mark.parametrize("which", ["tinyvgg", "mixed"])
def test_every_stage_follows_from_the_numbers_in_the_page(which: str, tinyvgg: Model) -> None:
    """Convolutions, pools, sums: what the page shows of a stage is its operation on what it shows of its sources."""
    model = tinyvgg if which == "tinyvgg" else mixed()
    data = embedded(explorer.page(describe(model, load_images("sample:chelsea")[0])))
    stages, seen = data["stages"], set()
    assert data["detail"] == "full"
    for stage in stages[1:-1]:
        made = recomputed(stage, [stages[t]["values"] for t in stage["sources"]])
        assert made is not None, stage["op"]
        assert_close(made, stage["values"], rtol=1e-4, atol=1e-4)
        assert (stage["low"], stage["high"]) == pytest.approx((float(stage["values"].min()),
                                                               float(stage["values"].max())))
        seen.add(stage["op"])
    assert seen >= {"conv", "linear"} | ({"relu", "maxpool"} if which == "tinyvgg" else
                                         {"silu", "tanh", "batchnorm", "add", "maxpool", "avgpool"})
    last = stages[-1]
    assert float(last["values"].sum()) == pytest.approx(1, abs=1e-6)
    assert_close(last["values"].flatten(), torch.softmax(last["logits"], 0)[last["units"]], rtol=1e-5, atol=1e-7)


def test_the_numbers_are_those_of_the_network(tinyvgg: Model) -> None:
    """Each stage holds what the module of its name returned, as a hook of the test's own sees it."""
    image = load_images("sample:chelsea")[0]
    for model in (tinyvgg, mixed()):
        made = describe(model, image)
        batch = next(model.prepare([image]))
        with model.opened() as module, torch.no_grad():
            kept, output = hooked(module, batch.inputs)
        named = [stage for stage in made["stages"] if stage["name"] in kept]
        assert len(named) >= len(made["stages"]) - 4
        for stage in named:
            if stage["op"] != "batchnorm" or model is tinyvgg:  # an activation in place rewrites what a hook keeps
                assert_close(torch.from_numpy(stage["values"]).flatten(), kept[stage["name"]].flatten())
        assert_close(torch.from_numpy(made["stages"][-1]["logits"]), output[0])
        assert made["target"] == int(output.argmax())


def test_tinyvgg_is_the_network_of_the_paper() -> None:
    """Sizes 62, 60, 30, 28, 26, 13 and 19,920 parameters (Wang et al. 2020); at most 200 KB; the card adds up."""
    model, card = load("xai:tinyvgg", device="cpu"), shipped.card("tinyvgg")
    made = describe(model, load_images("sample:rocket")[0])
    sizes = [stage["shape"][-1] for stage in made["stages"] if stage["kind"] in ("conv", "pool")]
    assert sizes == [62, 60, 30, 28, 26, 13]
    assert card is not None
    assert sum(stage["parameters"] for stage in made["stages"]) == 19_920 == card["parameters"]
    assert shipped.weights_file("tinyvgg").stat().st_size == card["weights"]["bytes"] <= 200_000
    assert card["validation"]["n"] == 500
    assert card["validation"]["low"] > 0.6  # of ten classes, where chance is 0.1
    assert made["model"]["notes"][0].startswith("top-1")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_tinyvgg_reaches_the_accuracy_of_its_card(tinyvgg: Model) -> None:
    card = shipped.card("tinyvgg")
    assert card is not None
    images = load_images(SHARED / "data/tinyimagenet20_val.parquet")
    assert tinyvgg.labels is not None
    right = count = 0
    for batch in tinyvgg.prepare(images, chunk=32):
        said = batch.output().argmax(1).tolist()
        for guess, truth in zip(said, batch.truth, strict=True):
            if truth in tinyvgg.labels:
                count += 1
                right += tinyvgg.class_name(guess) == truth
    assert count == card["validation"]["n"]
    assert abs(right / count - card["validation"]["accuracy"]) <= 0.004  # rounding may tip a picture over


@pytest.mark.parametrize("which", ["tinyvgg", "mixed"])
def test_what_a_cell_sees_is_where_its_gradient_is_not_zero(which: str, tinyvgg: Model) -> None:
    """The box of a cell at the border and of one inside, against the gradient of a network of random smooth steps."""
    model = tinyvgg if which == "tinyvgg" else mixed()
    made = describe(model, load_images("sample:chelsea")[0])
    x = torch.zeros(1, *made["stages"][0]["shape"], dtype=torch.float64, requires_grad=True)
    values = [x]
    for stage in made["stages"][1:]:
        if stage["field"] is None or len(stage["shape"]) != 3 or stage["shape"][1] < 2:
            break
        read = [values[t] for t in stage["sources"]]
        if "kernel" in stage:  # every step that slides, with weights of one sign: nothing cancels
            size, groups = stage["kernel"], stage.get("groups", read[0].shape[1])
            weight = torch.ones(stage["shape"][0], read[0].shape[1] // groups, *size, dtype=torch.float64)
            values.append(F.conv2d(read[0], weight, None, stage["stride"], stage["padding"], stage["dilation"], groups))
        else:
            values.append(sum(read))  # type: ignore[arg-type]  # tensors
        for cell in ((0, 0), tuple(n // 2 for n in stage["shape"][1:])):
            (gradient,) = torch.autograd.grad(values[-1][0, :, cell[0], cell[1]].sum(), x, retain_graph=True)
            seen = (gradient[0] != 0).any(0)
            for axis in (0, 1):
                places = seen.any(1 - axis).nonzero().flatten()
                start = stage["field"]["start"][axis] + cell[axis] * stage["field"]["jump"][axis]
                end = start + stage["field"]["size"][axis]
                told = (max(0, start), min(x.shape[2 + axis], end))
                assert told == (int(places[0]), int(places[-1]) + 1), stage["name"]
    assert len(values) > 6


def test_a_large_network_is_shown_by_stages() -> None:
    """photo20: blocks in groups, the strongest channels of each with their real values, the last linear map in full."""
    model, image = load("xai:photo20", device="cpu"), load_images("sample:chelsea")[0]
    before = model.cost.forwards
    made = describe(model, image)
    assert model.cost.forwards > before
    assert made["detail"] == "stages"
    assert any("parameters" in said for said in made["left_out"])
    stages = {stage["name"]: stage for stage in made["stages"]}
    assert [stages[f"stages.2.{i}"]["group"]["number"] for i in (0, 1)] == [1, 2]
    batch = next(model.prepare([image]))
    for name in ("stem.2", "stages.1.0", "stages.2.1"):
        view = model.view(name)
        batch.want(name)
        maps = view.to_map(batch.activations(name)) if batch.activations(name).shape[1] != view.channels else \
            batch.activations(name)
        strength = maps[0].abs().mean((1, 2))
        assert stages[name]["units"] == strength.topk(12).indices.tolist()
        assert_close(torch.from_numpy(stages[name]["values"]), maps[0, stages[name]["units"]], rtol=1e-4, atol=1e-4)
    data = embedded(explorer.page(made))
    head = next(stage for stage in data["stages"] if stage["kind"] == "linear")
    assert_close(recomputed(head, [head["values"]]), head["values"], rtol=1e-4, atol=1e-4)
    assert stages["stem.0"]["field"] == {"start": [-1.0, -1.0], "jump": [2.0, 2.0], "size": [3.0, 3.0]}
    assert stages["stages.2.1"]["field"]["size"] == [64.0, 64.0]


def test_a_heavy_page_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the largest maps lose every other row and column, and the page says so."""
    model, image = load("xai:photo20", device="cpu"), load_images("sample:chelsea")[0]
    whole = describe(model, image)
    monkeypatch.setattr(explore, "MOST_FLOATS", 20_000)
    thin = describe(model, image)
    assert explore.floats(thin["stages"][1:-1]) <= 20_000 < explore.floats(whole["stages"][1:-1])
    one, two = whole["stages"][1], thin["stages"][1]
    assert two["step"] == 4
    assert np.array_equal(two["values"], one["values"][:, ::4, ::4])
    assert any("every 2nd or 4th row" in said for said in thin["left_out"])


def test_the_network_is_left_as_it_was() -> None:
    model = mixed()
    module = model._module
    assert module is not None
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    describe(model, load_images("sample:chelsea")[0])
    assert module.training
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_targets_and_refusals(tinyvgg: Model) -> None:
    image = load_images("sample:coffee")[0]
    assert describe(tinyvgg, image, "class:3")["target"] == 3
    assert describe(tinyvgg, image, "Monarch")["target"] == 3
    assert describe(tinyvgg, image, "rank:2")["target"] != describe(tinyvgg, image)["target"]
    for text, sentence in (("top3", "one class"), ("tabby - monarch", "one class"), ("gorilla", "target"),
                           ("class:10", "from 0 to 9")):
        with pytest.raises(XaiError, match=sentence):
            describe(tinyvgg, image, text)
    callable_ = Model(forward=lambda x: x.mean((2, 3)), mean=(0.5,) * 3, std=(0.5,) * 3, size=32)
    with pytest.raises(XaiError, match="access to its layers"):
        describe(callable_, image)


def test_no_class_no_last_step() -> None:
    """A network whose output is a picture or one number has no shares to end with."""
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
    made = describe(Model(net, mean=(0.5,) * 3, std=(0.5,) * 3, size=16), load_images("sample:coffee")[0])
    assert made["target"] is None
    assert [stage["kind"] for stage in made["stages"]] == ["input", "conv", "activation"]
    assert made["labels"] == {}
    assert 'id="network"' in explorer.page(made)


def test_labels_of_one_each(tinyvgg: Model) -> None:
    """A multi-label head ends with a sigmoid of each score."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = Model(net, mean=(0.5,) * 3, std=(0.5,) * 3, size=16, head="multi-label")
    last = describe(model, load_images("sample:coffee")[0])["stages"][-1]
    assert last["kind"] == "answer"
    assert_close(torch.from_numpy(last["values"]).flatten(), torch.sigmoid(torch.from_numpy(last["logits"])))


def test_nothing_in_a_name_gets_out_of_its_place(tinyvgg: Model) -> None:
    """Names with tags, quotes and the end of a script element stay texts."""
    evil = f'</script>{ATTACK}"&\u2028'
    made = describe(tinyvgg, load_images("sample:coffee")[0])
    made["image"]["name"] = made["labels"]["5"] = evil
    made["model"]["notes"] = [evil]
    page = explorer.page(made, evil)
    assert page.count("</script>") == 2
    assert ATTACK not in page
    assert embedded(page)["image"]["name"] == evil


def test_the_page_names_no_place_outside(page: Path) -> None:
    bare = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "data:", page.read_text())
    bare = bare.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, which nothing loads
    assert not re.search(r"https?://|(?:src|href)=[\"']?(?!data:)[a-z/]|url\((?!data)|@import", bare)
    assert page.stat().st_size < LIMIT


def test_not_finite_numbers_are_said_to_be_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 14 * 14, 3))
    with torch.no_grad():
        net[0].weight[1] = float("inf")
    model = Model(net, mean=(0.5,) * 3, std=(0.5,) * 3, size=16)
    data = embedded(explorer.page(describe(model, load_images("sample:coffee")[0])))
    assert data["stages"][1]["high"] is None
    assert torch.isfinite(data["stages"][1]["values"][0]).all()


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    (tmp_path / "two").mkdir()
    for name in ("one.png", "two/a.png", "two/b.png"):
        Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "net.py").write_text("from torch import nn\n\ndef cnn():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), "
                                     "nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))\n")
    return CommandLine(tmp_path, monkeypatch, capfd)


def test_the_command(line: CommandLine) -> None:
    done = line.fine("models", "explore", "xai:tinyvgg", "sample:coffee", "--device", "cpu")
    assert done.out == "xai-out/explore-xai-tinyvgg-coffee.html\n"
    assert (line.folder / done.out.strip()).stat().st_size < LIMIT
    done = line.fine("models", "explore", f"file:net.py:cnn?{NORMAL}", "one.png", "--out", "walk.html", "--target",
                     "class:1", "--weights", "random")
    page = (line.folder / "walk.html").read_text()
    assert embedded(page)["target"] == 1
    assert "Random weights." in page
    assert line.fine("models", "explore", "xai:tinyvgg", "one.png", "--quiet", "--out", "q.html").out == ""


def test_the_command_refuses(line: CommandLine) -> None:
    line.refused("models", "explore", "xai:tinyvgg", "two", names="2 in 'two'")
    line.refused("models", "explore", "xai:tinyvgg", "none.png", names="none.png")
    line.refused("models", "explore", "xai:tinyvg", "one.png", names="tinyvg")
    line.refused("models", "explore", "xai:tinyvgg", "one.png", "--target", "gorilla", names="gorilla")
    line.refused("models", "explore", "xai:tinyvgg", "one.png", "--out", "walk.txt", names="walk.txt")
    line.refused("models", "explore", "xai:tinyvgg", "one.png", "--out", "two", names="two")
    line.refused("models", "explore", "xai:tinyvgg", "one.png", "--out", "one.png/walk.html", names="one.png")


# --- in a browser ---


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def shown(browser: Any, page: Path) -> Iterator[Page]:
    """The page, open; at the end nothing was complained of and nothing was asked of the network."""
    with opened(browser, page, width=1400, height=1000) as tab:
        yield tab
        tab.evaluate("1")
        assert [u for u in tab.requests if not u.startswith("data:image/")] == [page.as_uri()[:80]]
        assert tab.complaints == []


def visit(tab: Page, mark: str) -> None:
    """Go to a place of the page, such as s3u2y4x5, and wait until it is drawn."""
    tab.evaluate(f"location.hash = {mark!r}, new Promise(r => setTimeout(r, 30))")


def number(tab: Page, where: str) -> float:
    """The full number behind a shown one."""
    return float(tab.evaluate(f"document.querySelector({where!r}).dataset.value"))


@needs_chromium
def test_the_numbers_on_the_screen_equal_the_tensors(shown: Page, page: Path, tmp_path: Path) -> None:
    """For each stage and some cells: the shown result is the tensor's value, and the page's own sum agrees with it."""
    stages = embedded(page.read_text())["stages"]
    rng = np.random.default_rng(0)
    for s, stage in enumerate(stages[:-1]):
        for _ in range(3):
            units, h, w = stage["values"].shape
            u, y, x = (int(rng.integers(n)) for n in (units, h, w))
            visit(shown, f"s{s}u{u}y{y}x{x}")
            value = float(stage["values"][u, y, x])
            assert number(shown, "#result .n") == value, stage["name"]
            computed = float(shown.evaluate("document.querySelector('#total').dataset.computed"))
            assert computed == pytest.approx(value, abs=2e-4), stage["name"]
    Pillow.fromarray(shown.screenshot()).save(tmp_path / "linear.png")


@needs_chromium
def test_a_convolution_shows_its_cells_kernel_and_products(shown: Page, page: Path, tmp_path: Path) -> None:
    """Three tables: the cells under the kernel, the kernel, their products; the parts add up to the result."""
    stages = embedded(page.read_text())["stages"]
    s, u, y, x = 3, 4, 17, 31
    stage, source = stages[s], stages[s - 1]["values"]
    visit(shown, f"s{s}u{u}y{y}x{x}")
    for c in (0, 6):
        shown.evaluate(f"document.querySelectorAll('.part')[{c}].click()")
        tables = shown.evaluate("[...document.querySelectorAll('#formula table')].map("
                                "t => [...t.querySelectorAll('td')].map(d => Number(d.dataset.value)))")
        cells, kernel = source[c, y : y + 3, x : x + 3], stage["weight"][u, c]
        assert_close(torch.tensor(tables, dtype=torch.float64).reshape(3, 3, 3),
                     torch.stack([cells, kernel, cells * kernel]), rtol=1e-6, atol=1e-9)
    sums = shown.evaluate("[...document.querySelectorAll('.part-sum span')].map(d => Number(d.dataset.value))")
    assert_close(torch.tensor(sums, dtype=torch.float64),
                 (source[:, y : y + 3, x : x + 3] * stage["weight"][u]).sum((1, 2)), rtol=1e-6, atol=1e-9)
    assert sum(sums) + float(stage["bias"][u]) == pytest.approx(float(stage["values"][u, y, x]), abs=1e-4)
    Pillow.fromarray(shown.screenshot()).save(tmp_path / "convolution.png")


@needs_chromium
def test_a_pool_marks_its_largest_cell_and_the_picture_what_it_sees(shown: Page, page: Path) -> None:
    stages = embedded(page.read_text())["stages"]
    y, x = 7, 12
    visit(shown, f"s5u9y{y}x{x}")
    window = stages[4]["values"][9, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
    cells = shown.evaluate("[...document.querySelectorAll('.formula td')].map(d => Number(d.dataset.value))")
    assert cells == window.flatten().tolist()
    assert number(shown, ".formula td.mark") == float(window.max())
    box = shown.evaluate("(s => [s.top, s.left, s.height, s.width].map(parseFloat))"
                         "(document.querySelector('.photograph.large .box').style)")
    assert box == pytest.approx([100 * v / 64 for v in (14, 24, 6, 6)])
    at = shown.evaluate("(r => [r.x + r.width * 40.5 / 64, r.y + r.height * 20.5 / 64])"
                        "(document.querySelector('.photograph.large').getBoundingClientRect())")
    shown.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])
    assert shown.evaluate("document.querySelector('#where').textContent") == "row 9, column 19"


@needs_chromium
def test_softmax_adds_its_terms_one_by_one(shown: Page, page: Path) -> None:
    last = embedded(page.read_text())["stages"][-1]
    visit(shown, f"s{len(embedded(page.read_text())['stages']) - 1}u5")
    shares = shown.evaluate("[...document.querySelectorAll('.share')].map(d => Number(d.dataset.value))")
    assert sum(shares) == pytest.approx(1, abs=1e-6)
    assert shares == sorted(last["values"].flatten().tolist(), reverse=True)
    assert number(shown, "#result .n") == float(last["values"][5, 0, 0])
    exponentials = torch.exp(last["logits"] - last["logits"].max()).sort(descending=True).values
    for reached in (1, 2, 3):
        shown.evaluate("document.querySelector('#step').click()")
        assert number(shown, "#total .n") == pytest.approx(float(exponentials[:reached].sum()))
    assert shown.evaluate("document.querySelectorAll('tr.ahead').length") == 7


@needs_chromium
def test_it_is_walked_with_the_keyboard(shown: Page) -> None:
    """Tab reaches the maps once, arrows move among them, Enter opens, arrows move the cell, Escape leads back."""
    focus = "(e => e.classList.contains('unit') ? [Number(e.dataset.stage), Number(e.dataset.unit)] : null)" \
            "(document.activeElement)"
    for _ in range(12):
        shown.press("Tab", 9)
        if shown.evaluate(focus):
            break
    assert shown.evaluate(focus) == [0, 0]
    for key, code, expected in (("ArrowRight", 39, [1, 0]), ("ArrowDown", 40, [1, 1]), ("ArrowRight", 39, [2, 1]),
                                ("ArrowUp", 38, [2, 0]), ("ArrowUp", 38, [2, 0]), ("ArrowRight", 39, [3, 0]),
                                ("End", 35, [12, 0]), ("Home", 36, [0, 0]), ("ArrowRight", 39, [1, 0])):
        shown.press(key, code)
        assert shown.evaluate(focus) == expected
    assert shown.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert shown.evaluate("document.querySelectorAll('.unit.source').length") == 3
    shown.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    shown.call("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter", windowsVirtualKeyCode=13)
    shown.evaluate("new Promise(r => setTimeout(r, 60))")
    assert shown.evaluate("document.activeElement.textContent") == "conv1_1 channel 0"
    where = "document.querySelector('#where').textContent"
    shown.evaluate("location.hash = 's1u0y10x10', new Promise(r => setTimeout(r, 60))")
    shown.evaluate("document.querySelector('#output').focus()")
    for key, code, expected in (("ArrowRight", 39, "row 10, column 11"), ("ArrowDown", 40, "row 11, column 11"),
                                ("ArrowLeft", 37, "row 11, column 10"), ("ArrowUp", 38, "row 10, column 10")):
        shown.press(key, code)
        assert shown.evaluate(where) == expected
    assert "row 10, column 10" in shown.evaluate("document.querySelector('#live').textContent")
    shown.press("Escape", 27)
    shown.evaluate("new Promise(r => setTimeout(r, 60))")
    assert shown.evaluate(focus) == [1, 0]
    assert shown.evaluate("document.querySelector('#detail').checkVisibility()") is False


@needs_chromium
def test_it_steps_and_plays(shown: Page) -> None:
    """One step on or back is one cell; play goes on by itself until it is paused, slower where less motion is asked."""
    visit(shown, "s1u0y61x61")
    where = "document.querySelector('#where').textContent"
    shown.evaluate("document.querySelector('#step').click()")
    assert shown.evaluate(where) == "row 0, column 0"
    shown.evaluate("document.querySelector('#step-back').click()")
    assert shown.evaluate(where) == "row 61, column 61"
    shown.evaluate("document.querySelector('#play').click(), new Promise(r => setTimeout(r, 1000))")
    assert shown.evaluate(where) != "row 61, column 61"
    assert shown.evaluate("document.querySelector('#play').getAttribute('aria-pressed')") == "true"
    shown.evaluate("document.querySelector('#play').click()")
    stopped = shown.evaluate(where)
    shown.evaluate("new Promise(r => setTimeout(r, 500))")
    assert shown.evaluate(where) == stopped
    shown.call("Emulation.setEmulatedMedia", media="",
               features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    visit(shown, "s1u1y5x5")
    shown.evaluate("document.querySelector('#play').click(), new Promise(r => setTimeout(r, 500))")
    assert shown.evaluate(where) == "row 5, column 5"
    shown.evaluate("document.querySelector('#play').click()")
    moving = "[...document.querySelectorAll('.xai *')].some(e => getComputedStyle(e).transitionDuration !== '0s')"
    assert shown.evaluate(moving) is False


@needs_chromium
def test_a_finger_opens_a_map_and_picks_a_cell(browser: Any, page: Path) -> None:
    """At the width of a telephone, by touch alone."""
    with opened(browser, page, width=390, height=844) as tab:
        tab.call("Emulation.setTouchEmulationEnabled", enabled=True)

        def tap(where: str, down: float = 0.5, across: float = 0.5) -> None:
            tab.evaluate(f"document.querySelector({where!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
            x, y = tab.evaluate(f"(r => [r.x + r.width * {across}, r.y + r.height * {down}])"
                                f"(document.querySelector({where!r}).getBoundingClientRect())")
            tab.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
            tab.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
            tab.evaluate("new Promise(r => setTimeout(r, 120))")

        tap(".unit[data-stage='3'][data-unit='2']")
        assert tab.evaluate("document.querySelector('h2').textContent") == "conv1_2 channel 2"
        tap("#output", down=20.5 / 60, across=10.5 / 60)
        told = re.findall(r"\d+", tab.evaluate("document.querySelector('#where').textContent"))
        assert [int(n) for n in told] == pytest.approx([20, 10], abs=1)  # a cell is two pixels wide here
        small = tab.evaluate("[...document.querySelectorAll('#detail button, #bar button')].filter(b => "
                             "(r => r.width && Math.min(r.width, r.height) < 30)(b.getBoundingClientRect())).length")
        assert small == 0
        tap("#back")
        assert tab.evaluate("document.querySelector('#overview').checkVisibility()")
        assert tab.complaints == []


@needs_chromium
def test_pointing_lights_what_a_map_is_made_from(shown: Page) -> None:
    """Ten sources of a convolution, one of an activation; the thumbnail shows the pixels under the pointer."""
    def point(s: int, u: int) -> None:
        at = shown.evaluate(f"(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector("
                            f"`.unit[data-stage='{s}'][data-unit='{u}']`).getBoundingClientRect())")
        shown.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])

    lit = "[...document.querySelectorAll('.unit.source')].map(e => [Number(e.dataset.stage), Number(e.dataset.unit)])"
    point(3, 2)
    assert shown.evaluate(lit) == [[2, i] for i in range(10)]
    assert shown.evaluate("document.querySelector('.lit').getAttribute('d').match(/M/g).length") == 10
    point(10, 6)
    assert shown.evaluate(lit) == [[9, 6]]
    box = shown.evaluate("(s => [s.height, s.width].map(parseFloat))(document.querySelector('.thumb .box').style)")
    assert box == pytest.approx([25.0, 25.0])
    assert shown.evaluate("document.querySelector('.all').getAttribute('d').match(/M/g).length") == 590


PLACES = ["overview", "s0u0", "s3u2", "s4u1", "s5u1", "s11u5", "s12u5"]


@needs_chromium
@pytest.mark.parametrize("width", [340, 700, 1400])
def test_no_width_scrolls_sideways(browser: Any, page: Path, width: int, tmp_path: Path) -> None:
    with opened(browser, page, width=width) as tab:
        for place in PLACES:
            visit(tab, place)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, place
            Pillow.fromarray(tab.screenshot()).save(tmp_path / f"{place}-{width}.png")


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_legible(shown: Page, scheme: str) -> None:
    """Every text of every card has a contrast of at least 4.5 to 1 (WCAG AA)."""
    shown.scheme(scheme)
    paper = shown.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert all(c > 240 for c in paper) if scheme == "light" else all(c < 30 for c in paper)
    for place in PLACES:
        visit(shown, place)
        assert shown.evaluate(CONTRAST) == [], place


@needs_chromium
@pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: npm install --prefix tests")
def test_axe_finds_nothing_that_keeps_people_out(shown: Page) -> None:
    shown.evaluate(AXE.read_text(encoding="utf-8"))
    for place in PLACES:
        visit(shown, place)
        found = shown.evaluate("axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html)]))")
        assert found == [], place


@needs_chromium
def test_it_reads_without_javascript(browser: Any, page: Path) -> None:
    """Without scripts a table of the stages stands there, with small pictures, and no dead controls."""
    with opened(browser, page, script=False) as tab:
        assert tab.evaluate("document.querySelector('#walk').checkVisibility()") is False
        assert tab.evaluate("document.querySelectorAll('#table tbody tr').length") == 13
        text = tab.evaluate("document.body.innerText").replace("\u202f", " ")
        for said in ("conv2_2", "10 × 26 × 26", "16 910", "espresso"):
            assert said in text
        assert tab.evaluate("[...document.querySelectorAll('.strip')].every(i => i.naturalWidth > 0 || i.loading)")
        assert tab.complaints == []


@needs_chromium
def test_attacks_in_names_are_text_in_the_browser(browser: Any, tinyvgg: Model, tmp_path: Path) -> None:
    made = describe(tinyvgg, load_images("sample:coffee")[0])
    made["image"]["name"] = f"</script>{ATTACK}"
    made["labels"] = dict.fromkeys(made["labels"], ATTACK)
    made["stages"] = [dict(stage, name=f"{stage['name']}{ATTACK}") for stage in made["stages"]]
    path = explorer.write(made, tmp_path / "evil.html", ATTACK)
    with opened(browser, path) as tab:
        for place in ("overview", "s3u1", "s11u5", "s12u5"):
            visit(tab, place)
        assert tab.evaluate("window.hacked === undefined")
        assert tab.evaluate("document.scripts.length") == 2
        assert tab.evaluate(f"document.body.innerText.includes({ATTACK!r})")
        assert tab.complaints == []


@needs_chromium
def test_the_policy_stops_a_request(browser: Any, page: Path) -> None:
    with opened(browser, page) as tab:
        blocked = tab.evaluate("""new Promise(r => {
            addEventListener('securitypolicyviolation', e => r(e.violatedDirective));
            new Image().src = 'https://example.invalid/x.png'; })""")
        assert blocked == "img-src"


@needs_chromium
def test_stages_in_a_browser(browser: Any, tmp_path: Path) -> None:
    """photo20: groups unfold, a block shows its cells and its parts, the last linear map its largest terms."""
    made = describe(load("xai:photo20", device="cpu"), load_images("sample:chelsea")[0])
    path = explorer.write(made, tmp_path / "photo20.html")
    names = [stage["name"] for stage in made["stages"]]
    with opened(browser, path, width=1400) as tab:
        columns = tab.evaluate("document.querySelectorAll('.stage-column').length")
        tab.evaluate("document.querySelector('.fold').click()")
        assert tab.evaluate("document.querySelectorAll('.stage-column').length") == columns + 1
        s = names.index("stages.1.1")
        visit(tab, f"s{s}u3y5x6")
        assert number(tab, "#result .n") == float(made["stages"][s]["values"][3, 5, 6])
        cells = tab.evaluate("[...document.querySelectorAll('.formula td')].map(d => Number(d.dataset.value))")
        assert cells == made["stages"][s]["values"][3, 3:8, 4:9].flatten().tolist()
        assert tab.evaluate("document.querySelectorAll('#detail details tbody tr').length") == 7
        s = names.index("fc")
        visit(tab, f"s{s}u0")
        assert number(tab, "#result .n") == float(made["stages"][s]["values"][0, 0, 0])
        computed = float(tab.evaluate("document.querySelector('#total').dataset.computed"))
        assert computed == pytest.approx(number(tab, "#result .n"), abs=1e-3)
        visit(tab, f"s{len(names) - 1}u0")
        assert number(tab, "#result .n") == float(made["stages"][-1]["values"][0, 0, 0])
        Pillow.fromarray(tab.screenshot()).save(tmp_path / "softmax.png")
        assert tab.complaints == []


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("spec", ["torchvision:resnet50", "timm:vit_base_patch16_224", "torchvision:vgg16",
                                  "torchvision:swin_t", "torchvision:densenet121", "timm:convnext_tiny",
                                  "torchvision:squeezenet1_0", "timm:efficientnet_b0"])
def test_large_networks_make_pages_that_open(browser: Any, spec: str, tmp_path: Path) -> None:
    """At most 8 MB; every stage can be opened; its numbers are there; nothing is complained of."""
    model, image = load(spec, weights="random", device="cpu"), load_images("sample:chelsea")[0]
    made = describe(model, image)
    path = explorer.write(made, tmp_path / "page.html")
    assert path.stat().st_size <= LIMIT
    assert len(made["stages"]) >= 5
    assert made["stages"][-1]["kind"] == "softmax"
    assert_close(torch.from_numpy(made["stages"][-1]["logits"]), next(model.prepare([image])).output()[0], rtol=1e-3,
                 atol=1e-3)
    with opened(browser, path, width=1400) as tab:
        Pillow.fromarray(tab.screenshot()).save(tmp_path / "overview.png")
        for s in range(len(made["stages"])):
            visit(tab, f"s{s}u0")
            assert tab.evaluate("document.querySelector('#result') !== null"), made["stages"][s]["name"]
        assert tab.complaints == []


def test_the_stages_of_a_transformer_are_read_as_maps() -> None:
    """A small ViT: tokens as a grid, the class token left out and said so, and cells that see the whole picture."""
    model = load("timm:vit_tiny_patch16_224?size=64", weights="random", device="cpu")
    made = describe(model, load_images("sample:chelsea")[0])
    last = next(stage for stage in made["stages"] if stage["name"] == "blocks.2")
    assert last["shape"] == [192, 4, 4]
    assert last["tokens"] == 1
    assert last["group"] == {"name": "blocks", "op": "Block", "count": 12, "number": 3}
    assert last["field"]["size"] == [64.0, 64.0]
    patches = next(stage for stage in made["stages"] if stage["name"].startswith("patch_embed"))
    assert patches["field"] == {"start": [0.0, 0.0], "jump": [16.0, 16.0], "size": [16.0, 16.0]}
    batch = next(model.prepare([load_images("sample:chelsea")[0]]))
    with model.opened() as module, torch.no_grad():
        kept, _ = hooked(module, batch.inputs)
    maps = kept["blocks.2"][0, 1:].T.reshape(192, 4, 4)
    assert_close(torch.from_numpy(last["values"]), maps[last["units"]])
