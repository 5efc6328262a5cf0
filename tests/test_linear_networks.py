"""The linear interpreter on networks of the zoo: y = F x + r, the finding on classifiers, the page's panels."""

from __future__ import annotations

import csv
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

import xai
from xai.analyzer import param
from xai.attribution import Attribution
from xai.linear import COMPLETE, Linear
from xai.panels import Heatmap, Number

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
TABLES = ROOT / "examples" / "tables"
WEIGHTS = SHARED / "models" / "squeezenet1_0_imagenet.safetensors"
NETWORKS = (
    "torchvision:squeezenet1_0", "torchvision:resnet50", "torchvision:vgg16", "torchvision:densenet121",
    "torchvision:efficientnet_b0", "torchvision:mobilenet_v3_small", "torchvision:convnext_tiny",
    "timm:vit_small_patch16_224", "timm:swin_tiny_patch4_window7_224", "torchvision:inception_v3", "xai:espcn-x2",
)


def script(name: str) -> ModuleType:
    """A script of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_votes_and_offset_add_up_on_the_zoo(name: str, precision: str) -> None:
    """With constants that are not zero; squeezenet1_0 with its trained weights where they are there."""
    if "squeezenet" in name and not WEIGHTS.is_file():
        pytest.skip(f"needs ../shared: {WEIGHTS.name}")
    weights = str(WEIGHTS) if "squeezenet" in name else None if name.startswith("xai:") else "random"
    model = xai.load(name, precision=precision, **({"weights": weights} if weights else {}))
    if weights == "random":
        with model.opened() as network:
            script("walk_linear").alive(network)
    x = torch.randn(1, 3, *model.preprocessing.size, generator=torch.Generator().manual_seed(1)).to(model.dtype)
    linear = Linear(model, x)
    direction = torch.zeros(linear.y.shape, dtype=linear.y.dtype)
    direction.view(-1)[int(linear.y.argmax())] = 1
    row, terms = linear.terms(direction)
    assert row.any()
    assert linear.gap_of(direction, row, terms) <= COMPLETE[model.dtype]
    offset = float((linear.offset * direction).double().sum())
    assert abs(offset - sum(term.value for term in terms)) <= COMPLETE[model.dtype] * sum(term.size for term in terms)


@pytest.mark.slow
def test_pixels_decide_in_one_classifier_and_constants_in_another() -> None:
    """The finding of examples/tables/linear_votes.md, on every photograph and on a tenth of the validation ones."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared: photographs")
    votes = script("linear_votes")

    def means(rows: list[dict[str, float]]) -> dict[str, float]:
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    squeezenet = list(votes.rows("torchvision:squeezenet1_0", str(WEIGHTS), xai.load_images(SHARED / "images")))
    photo20 = list(votes.rows("xai:photo20", None, xai.load_images(SHARED / votes.VALIDATION)[::20]))
    trained, _, shuffled = (means(rows) for _, _, rows in squeezenet)
    assert shuffled["share of r"] < 0.02 < trained["share of r"] < 0.1
    assert trained["F x alone: same class"] > 0.8 > 0.6 > trained["r alone: same class"]
    trained, _, shuffled = (means(rows) for _, _, rows in photo20)
    assert trained["share of r"] > 0.78 > shuffled["share of r"] > 0.5
    assert trained["r alone: same class"] > 0.75 > 0.3 > trained["F x alone: same class"]


def test_the_smoke_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row.verdict for row in script("walk_linear").main(["--smoke"])] == ["holds"] * 3


def walked() -> list[dict[str, str]]:
    """The rows of the walk, with the parameters and the input of each network."""
    with (TABLES / "timm_smallest.csv").open(newline="", encoding="utf-8") as file:
        sizes = {row["model"]: row for row in csv.DictReader(file)}
    with (TABLES / "linear_walk.csv").open(newline="", encoding="utf-8") as file:
        return [{**sizes[row["model"]], **row} for row in csv.DictReader(file)]


def light(row: dict[str, str]) -> bool:
    """Whether a network takes seconds, not minutes and many GB."""
    return int(row["parameters"]) < 3e7 and int(row["input"].partition("x")[0]) <= 256


def test_the_walk_has_every_module_and_the_readme_its_count() -> None:
    import timm

    walker, rows = script("walk_linear"), walked()
    assert sorted(row["module"] for row in rows) == sorted(timm.list_modules())
    said = walker.summary([walker.Row(*(row[f] for f in ("module", "model", "gap", "explained", "verdict")))
                           for row in rows])
    assert said in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert sum(row["verdict"] == "holds" for row in rows) >= 90


@pytest.mark.walk
@pytest.mark.parametrize("row", [row for row in walked() if light(row)][::2], ids=lambda row: row["model"])
def test_a_network_of_the_walk_does_as_the_table_says(row: dict[str, str]) -> None:
    """Every second of the light ones; `examples/walk_linear.py` does them all."""
    assert script("walk_linear").visit(row["module"], row["model"]).verdict == row["verdict"]


def test_linearscope_shows_what_the_operator_says() -> None:
    """Sums, the map and the offset of the shipped network on a photograph; the same score however zero is chosen."""
    model = xai.load("xai:photo20")
    for zero in ("mean", "black"):
        result = xai.LinearScope(zero=zero, singular=0)(xai.Subject.of(model, "sample:coffee", evidence="off"))
        numbers = {p.key: p.value for p in result.panels if isinstance(p, Number)}
        votes = next(p for p in result.panels if isinstance(p, Heatmap) and p.key == "map").values
        batch = next(iter(model.prepare(xai.load_images("sample:coffee"))))
        score = float(batch.output().max())
        assert numbers["votes_sum"] == pytest.approx(float(votes.sum()), rel=1e-3, abs=1e-4)
        assert numbers["votes_sum"] + numbers["offset"] == pytest.approx(score, rel=1e-5)
        assert numbers["completeness"] <= 1e-5


def test_its_cheapest_form_for_checks_is_the_map_alone() -> None:
    cheapest = xai.LinearScope().divided(512)
    assert (cheapest.classes, cheapest.singular, cheapest.columns) == (0, 0, 0)


def test_a_count_without_a_least_value_is_divided_down_to_one() -> None:
    @dataclass(frozen=True)
    class Own(Attribution):
        """Of someone else."""

        steps: int = param(50, "how many")

    assert Own().divided(512).steps == 1
