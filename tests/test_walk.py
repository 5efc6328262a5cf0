"""GradCAM over all of timm's modules and torchvision's classifiers: the count that the README states."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "examples" / "tables"


@pytest.fixture(scope="module")
def walker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("walk_gradcam", ROOT / "examples" / "walk_gradcam.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_smoke(walker: ModuleType, tmp_path: Path) -> None:
    rows = walker.main(["--smoke", "--out", str(tmp_path)])
    assert [(row.model, row.layer, row.grid, row.verdict) for row in rows] == [
        ("squeezenet1_0", "features.12", "13x13", "map"),
        ("test_convnext", "stages.3.blocks.1", "5x5", "map"),
        ("test_vit", "blocks.5.norm1", "10x10", "map"),
    ]
    assert (tmp_path / "gradcam_walk.md").read_text(encoding="utf-8").count("| map |") == 3


def test_what_is_no_map_is_named(walker: ModuleType) -> None:
    assert walker.judge(np.full((4, 4), np.nan)) == "not finite"
    assert walker.judge(np.full((4, 4), 3.0)) == "constant"
    assert walker.judge(np.zeros((7, 7))) == "constant"
    assert walker.judge(np.arange(9.0).reshape(3, 3)) == "small grid"
    assert walker.judge(np.arange(16.0).reshape(4, 4)) == "map"
    missing = walker.visit("timm", "", "no_such_network")
    assert missing.verdict == "error"
    assert "no_such_network" in missing.reason


def test_the_tables_list_every_module_and_classifier(walker: ModuleType) -> None:
    from xai.torchvision_import import ensure_torchvision

    torchvision = ensure_torchvision()
    import timm

    chosen = walker.networks()
    modules = {module: model for source, module, model in chosen if source == "timm"}
    assert sorted(modules) == sorted(timm.list_modules())
    assert all(model in timm.list_models(module=module) for module, model in modules.items())
    classifiers = [model for source, _, model in chosen if source == "torchvision"]
    assert sorted(classifiers) == sorted(torchvision.models.list_models(module=torchvision.models))
    with (TABLES / "gradcam_walk.csv").open(newline="", encoding="utf-8") as file:
        listed = [(row["source"], row["module"], row["model"]) for row in csv.DictReader(file)]
    assert sorted(listed) == sorted(chosen)


def test_the_readme_states_the_counts_of_the_table(walker: ModuleType) -> None:
    with (TABLES / "gradcam_walk.csv").open(newline="", encoding="utf-8") as file:
        rows = [walker.Row(**row) for row in csv.DictReader(file)]
    assert walker.counts(rows)["timm"][0] >= 92
    assert walker.counts(rows)["torchvision"] == (80, 80)
    assert walker.summary(rows) in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


@pytest.mark.walk
def test_the_whole_walk(walker: ModuleType) -> None:
    rows = walker.walk(walker.networks())
    good = walker.counts(rows)
    assert good["torchvision"] == (80, 80)
    assert good["timm"][1] == 98
    assert good["timm"][0] >= 92
    with (TABLES / "gradcam_walk.csv").open(newline="", encoding="utf-8") as file:
        before = {(row["source"], row["model"]): (row["layer"], row["verdict"]) for row in csv.DictReader(file)}
    assert {(row.source, row.model): (row.layer, row.verdict) for row in rows} == before
