"""Models of transformers, from folders and from the hub's cache; no code of a repository is ever run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xai.errors import XaiError
from xai.images import load_images
from xai.targets import Target
from xai.zoo.loading import load

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT and a ResNet of a few thousand parameters, saved as the library saves them."""
    from xai.torchvision_import import ensure_torchvision

    ensure_torchvision()
    transformers: Any = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hf")
    names = {0: "cat", 1: "dog", 2: "<b>bird</b>"}
    vit = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        num_labels=3, id2label=names, label2id={name: i for i, name in names.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ViTForImageClassification(vit).save_pretrained(folder / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    resnet = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    transformers.ResNetForImageClassification(resnet).save_pretrained(folder / "resnet")
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875)
    processor.save_pretrained(folder / "resnet")
    transformers.ResNetForImageClassification(resnet).save_pretrained(folder / "bare")
    return folder


def test_a_folder_of_transformers(hf_folder: Path) -> None:
    import transformers

    model = load(f"hf:{hf_folder / 'vit'}", device="cpu")
    assert model.labels == ("cat", "dog", "<b>bird</b>")
    assert (model.preprocessing.size, model.preprocessing.crop) == ((32, 32), "squash")
    assert model.preprocessing.mean == (0.5, 0.5, 0.5)
    assert not model.runs_code
    original = transformers.ViTForImageClassification.from_pretrained(hf_folder / "vit").eval()
    with torch.no_grad():
        expected = original(model.example()).logits
    torch.testing.assert_close(model(model.example()), expected, rtol=1e-4, atol=1e-5)
    batch = next(model.prepare(load_images(PICTURE)))
    processor = transformers.ViTImageProcessor.from_pretrained(hf_folder / "vit")
    theirs = processor(PICTURE, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch.inputs, theirs, rtol=0, atol=2 / 255 / 0.5)
    assert batch.view().grid == (4, 4)
    assert batch.gradients("auto", batch.bind(Target("class:1"))).abs().max() > 0


def test_a_convolutional_network_of_transformers(hf_folder: Path) -> None:
    import transformers

    model = load(f"hf:{hf_folder / 'resnet'}", device="cpu")
    assert model.labels is None  # LABEL_0, LABEL_1 are no names
    assert (model.preprocessing.size, model.preprocessing.resize) == ((64, 64), 73)
    original = transformers.ResNetForImageClassification.from_pretrained(hf_folder / "resnet").eval()
    with torch.no_grad():
        expected = original(model.example()).logits
    torch.testing.assert_close(model(model.example()), expected, rtol=1e-4, atol=1e-5)
    random = load(f"hf:{hf_folder / 'resnet'}", weights="random", device="cpu")
    assert random.random_weights
    assert random.weights_hash != model.weights_hash
    assert random.weights_hash == load(f"hf:{hf_folder / 'resnet'}", weights="random", device="cpu").weights_hash
    file = hf_folder / "resnet" / "model.safetensors"
    assert load(f"hf:{hf_folder / 'bare'}", weights=str(file), device="cpu").weights_hash == model.weights_hash


def test_transformers_without_what_is_needed(hf_folder: Path, tmp_path: Path) -> None:
    bare = load(f"hf:{hf_folder / 'bare'}", device="cpu")
    with pytest.raises(XaiError, match="mean and std"):
        next(bare.prepare(load_images(PICTURE)))
    with pytest.raises(XaiError, match=r"a folder that exists"):
        load(f"hf:{tmp_path / 'none'}")
    with pytest.raises(XaiError, match=r"config\.json"):
        load(f"hf:{tmp_path}")
    with pytest.raises(XaiError, match=r"--weights FILE.*xai:photo20"):
        load("hf:google/vit-base-patch16-224")
    with pytest.raises(XaiError, match="configuration decides"):
        load(f"hf:{hf_folder / 'vit'}?classes=3")
    (tmp_path / "config.json").write_text((hf_folder / "vit" / "config.json").read_text())
    with pytest.raises(XaiError, match=r"safetensors|can load"):
        load(f"hf:{tmp_path}")


def test_a_repository_with_its_own_code_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Net"}}'
    )
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(XaiError, match="its own"):
        load(f"hf:{tmp_path}")
    assert not (tmp_path / "ran").exists()
