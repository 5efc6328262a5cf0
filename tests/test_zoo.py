"""Models by name: shipped, torchvision, timm, with weights from files, from caches and from the seed."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from xai.errors import XaiError
from xai.model import Model
from xai.zoo import cache, shipped
from xai.zoo.loading import load

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
SQUEEZENET = SHARED / "models" / "squeezenet1_0_imagenet.safetensors"


def state(model: Model) -> dict[str, Tensor]:
    with model.opened() as module:
        return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    return state(load("torchvision:resnet18", weights="random", device="cpu"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """No name can be resolved; the list grows with every try."""
    tries: list[Any] = []

    def refuse(*address: Any, **_: Any) -> Any:
        tries.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tries


def test_random_weights_come_from_the_seed_and_are_marked(resnet: dict[str, Tensor]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = load("resnet18", weights="random", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(state(again), resnet, rtol=0, atol=0)
    assert again.random_weights
    assert again.weights == "random (seed 0)"
    assert again.spec == "torchvision:resnet18"
    other = load("resnet18", weights="random", device="cpu", seed=1)
    assert other.weights_hash != again.weights_hash


@pytest.mark.parametrize(
    ("spec", "size", "resize", "interpolation"),
    [
        ("torchvision:squeezenet1_0", 224, 256, "bilinear"),
        ("torchvision:efficientnet_b0", 224, 256, "bicubic"),
        ("torchvision:mobilenet_v3_small@IMAGENET1K_V1", 224, 256, "bilinear"),
        ("timm:test_vit", 160, 168, "bicubic"),
        ("timm:test_efficientnet", 160, 168, "bicubic"),
        ("xai:photo20", 64, None, "bilinear"),
    ],
)
def test_native_input_of_a_random_network(spec: str, size: int, resize: int | None, interpolation: str) -> None:
    model = load(spec, weights="random", device="cpu")
    assert model.preprocessing.size == (size, size)
    assert model.preprocessing.interpolation == interpolation
    if resize is not None:
        assert model.preprocessing.resize == resize
        assert model.preprocessing.mean is not None
    assert model.preprocessing.reason
    output = model(model.example())
    assert output.shape == (1, 1000 if spec != "xai:photo20" else 20)
    assert torch.isfinite(output).all()
    if model.labels is not None and spec != "xai:photo20":
        assert model.labels[281] == "tabby"


def test_a_classifier_of_zeros_is_drawn_anew() -> None:
    model = load("timm:mixer_s32_224", weights="random", device="cpu")
    assert any("zeros" in note for note in model.notes)
    a, b = model(torch.zeros(1, 3, 224, 224)), model(model.example())
    assert (a - b).abs().max() > 1e-3


def test_a_timm_network_without_classes_is_an_embedding() -> None:
    model = load("timm:vit_tiny_patch16_dinov3_qkvb?size=64", weights="random", device="cpu")
    assert model.head.kind == "embedding"
    assert model.labels is None


def test_options_change_the_network_and_its_preprocessing(tmp_path: Path) -> None:
    labels = tmp_path / "names & more.txt"
    labels.write_text("one\ntwo\nthree\n", encoding="utf-8")
    quoted = str(labels).replace("&", "%26")
    spec = f"timm:test_resnet?size=96&channels=1&classes=3&mean=0.5&std=0.25&labels={quoted}&crop=squash&layer=layer3"
    model = load(spec, weights="random", device="cpu")
    assert model.preprocessing.size == (96, 96)
    assert (model.preprocessing.channels, model.preprocessing.crop) == (1, "squash")
    assert (model.preprocessing.mean, model.preprocessing.std) == ((0.5,), (0.25,))
    assert "from the spec" in model.preprocessing.reason
    assert model.labels == ("one", "two", "three")
    assert model.options["layer"] == "layer3"
    assert model(model.example()).shape == (1, 3)
    assert load(model.spec, weights="random", device="cpu").weights_hash == model.weights_hash


def test_a_new_size_keeps_the_share_that_the_crop_takes() -> None:
    model = load("resnet18?size=112", weights="random", device="cpu")
    assert (model.preprocessing.size, model.preprocessing.resize) == ((112, 112), 128)


@pytest.mark.parametrize(
    ("name", "sizes"), [pytest.param("inception_v3", (299, 342), marks=pytest.mark.slow), ("googlenet", (224, 256))]
)
def test_networks_with_auxiliary_heads(name: str, sizes: tuple[int, int], tmp_path: Path) -> None:
    model = load(name, weights="random", device="cpu")
    assert (model.preprocessing.size, model.preprocessing.resize) == ((sizes[0],) * 2, sizes[1])
    with model.opened() as module:
        assert module.transform_input  # as with torchvision's own weights
        held = dict(module.state_dict())
    assert not any(key.startswith(("aux", "Aux")) for key in held)
    save_file(held, tmp_path / "without.safetensors")
    again = load(name, weights=str(tmp_path / "without.safetensors"), device="cpu")
    assert again.weights_hash == model.weights_hash
    assert any("training only" in note for note in again.notes)


def test_position_embeddings_are_stretched_to_another_size() -> None:
    from xai.torchvision_import import ensure_torchvision
    from xai.zoo.from_torchvision import _stretch_positions
    from xai.zoo.state_dicts import State

    torchvision = ensure_torchvision()
    small, large = (
        torchvision.models.VisionTransformer(
            image_size=size, patch_size=8, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8
        )
        for size in (16, 32)
    )
    held = State(dict(small.state_dict()))
    _stretch_positions(large, held)
    assert held.tensors["encoder.pos_embedding"].shape == (1, 17, 8)
    assert "4 to 16 patches" in held.notes[0]
    large.load_state_dict(held.tensors)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("resnet18?channels=1", "three channels"),
        ("resnet18?range=0-255", "together with mean and std"),
        ("resnet18?mean=0.5,0.5", "one number or 3"),
        ("resnet18?labels=/no/such/file.txt", "labels must be"),
        ("torchvision:resnet18@V9", "IMAGENET1K_V1"),
        ("torchvision:resnet1", "torchvision:resnet18"),
        ("timm:resnet18.nothing", "a1_in1k"),
        ("timm:no_such_model_at_all", "the name of a model of timm"),
        ("xai:photo21", "xai:photo20"),
        ("vit_b_16?size=97", "size must be"),
    ],
)
def test_bad_specs(spec: str, sentence: str) -> None:
    with pytest.raises(XaiError, match=sentence):
        load(spec, weights="random", device="cpu")


# --- the source's own weights ---
def test_without_network_and_cache_the_sentence_says_what_to_do(
    no_network: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for spec in ("resnet50", "timm:resnet18", "hf-hub:timm/resnet18.a1_in1k"):
        with pytest.raises(XaiError) as caught:
            load(spec, device="cpu")
        for part in ("--weights FILE", "--weights random", "xai:photo20"):
            assert part in str(caught.value)
    assert len(no_network) <= 3  # one question each, and no retries
    assert not list(tmp_path.iterdir())


def test_a_silent_server_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        start = time.monotonic()
        assert not cache.reachable(f"http://127.0.0.1:{server.getsockname()[1]}/file")
        assert time.monotonic() - start < 3


def test_weights_in_torchs_cache_work_offline(
    no_network: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, resnet: dict[str, Tensor]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(resnet, folder / "resnet18-f37072fd.pth")
    model = load("resnet18", device="cpu")
    torch.testing.assert_close(state(model), resnet, rtol=0, atol=0)
    assert not model.random_weights
    assert "ResNet18_Weights.IMAGENET1K_V1" in model.weights
    assert model.labels is not None
    assert any("sha256" in note for note in model.notes)  # it is not the published file, and the card says so


def test_weights_in_the_hubs_cache_work_offline(
    no_network: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    network = load("timm:test_resnet", weights="random", device="cpu")
    folder = tmp_path / "models--timm--test_resnet.r160_in1k"
    snapshot = folder / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)
    save_file(state(network), snapshot / "model.safetensors")
    with network.opened() as module:
        configuration = dict(module.pretrained_cfg)
    config = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": configuration}
    (snapshot / "config.json").write_text(json.dumps(config))
    for spec in ("timm:test_resnet", "hf-hub:timm/test_resnet.r160_in1k", "timm:test_resnet.r160_in1k"):
        model = load(spec, device="cpu")
        torch.testing.assert_close(state(model), state(network), rtol=0, atol=0)
        assert model.preprocessing.size == (160, 160)
        assert not model.random_weights


def test_shipped_weights_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(XaiError, match=r"photo20\.safetensors.*--weights random"):
        load("xai:photo20")
    model = load("xai:photo20", weights="random", device="cpu")
    assert model.preprocessing.mean is None


def test_a_shipped_model_follows_its_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    half = {name: value.half() for name, value in state(load("photo20", weights="random", device="cpu")).items()}
    save_file(half, tmp_path / "photo20.safetensors")
    card = {
        "input_size": [64, 64], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2],
        "labels": [f"class {i}" for i in range(20)],
        "resize": {"short_side": 64, "centre_crop": [64, 64], "interpolation": "bilinear, antialiased"},
    }  # fmt: skip
    (tmp_path / "photo20.json").write_text(json.dumps(card))
    model = load("xai:photo20", device="cpu")
    assert model.preprocessing.mean == (0.5, 0.4, 0.3)
    assert model.labels is not None
    assert model.labels[3] == "class 3"
    assert model.dtype == torch.float32
    loaded = state(model)
    torch.testing.assert_close({name: value.half() for name, value in loaded.items()}, half, rtol=0, atol=0)
    assert not model.random_weights


def test_the_shipped_network_tells_its_accuracy_and_terms() -> None:
    notes = load("xai:photo20").notes
    assert "top-1 84.4 % of 1,000 validation pictures (95 % interval 82.0 to 86.5)" in notes
    assert any("non-commercial" in note for note in notes)
    assert load("xai:photo20", weights="random").notes == []


@pytest.mark.skipif(not SQUEEZENET.exists(), reason="needs ../shared")
def test_a_trained_network_says_what_is_known_of_it() -> None:
    from xai.images import load_images

    model = load("squeezenet1_0", weights=str(SQUEEZENET), device="cpu")
    assert model.spec == "torchvision:squeezenet1_0"
    assert model.labels is not None
    expected = {"chelsea": ("Egyptian cat", 0.71), "coffee": ("espresso", 0.81), "rocket": ("missile", 0.34)}
    for name, (label, probability) in expected.items():
        batch = next(model.prepare(load_images(f"sample:{name}")))
        scores = batch.scores()[0]
        assert model.labels[int(scores.argmax())] == label
        assert float(scores.max()) == pytest.approx(probability, abs=0.02)


def test_a_loader_never_leaves_a_network_in_training_mode_or_with_gradients() -> None:
    model = load("timm:test_vit", weights="random", device="cpu")
    output = model(model.example())
    assert not output.requires_grad
    torch.testing.assert_close(model(model.example()), output, rtol=0, atol=0)
    with model.opened() as module:
        assert isinstance(module, nn.Module)
        assert not module.training
