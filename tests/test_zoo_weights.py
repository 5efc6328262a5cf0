"""Weight files: what is read, what is taken off the names, and one sentence for everything that is not a state dict."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from xai.errors import XaiError
from xai.zoo.fitting import fit
from xai.zoo.loading import load
from xai.zoo.state_dicts import State, read_state

SPEC = "timm:test_resnet?size=32"


@pytest.fixture(scope="module")
def held() -> dict[str, Tensor]:
    with load(SPEC, weights="random", device="cpu", seed=3).opened() as module:
        return {name: value.clone() for name, value in module.state_dict().items()}


def state(path: Path) -> dict[str, Tensor]:
    with load(SPEC, weights=str(path), device="cpu").opened() as module:
        return dict(module.state_dict())


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net.pth", "net.ckpt", "net.bin"])
def test_every_kind_of_file_gives_the_same_network(name: str, held: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(held, path) if path.suffix == ".safetensors" else torch.save(held, path)
    torch.testing.assert_close(state(path), held, rtol=0, atol=0)
    model = load(SPEC, weights=str(path), device="cpu")
    assert name in model.weights
    assert "sha256" in model.weights
    assert not model.random_weights


def test_a_file_without_the_usual_ending_and_the_format_before_zip(held: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(held, tmp_path / "checkpoint", _use_new_zipfile_serialization=False)
    torch.testing.assert_close(state(tmp_path / "checkpoint"), held, rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "arch": "resnet", "args": argparse.Namespace(lr=0.1)},
        lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": []}},
        lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"state_dict": {"model": {f"_orig_mod.{k}": v for k, v in s.items()}}},
        lambda s: {f"module._orig_mod.model.{k}": v for k, v in s.items()},
        lambda s: {"ema": s},
        lambda s: {f"model.{k}": v for k, v in s.items()} | {"criterion.weight": torch.ones(2)},
        lambda s: {k.replace("layer1.", "layer1.module."): v for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["nested", "model", "module", "twice nested", "three prefixes", "ema", "with a loss", "inside", "no counters"],
)  # fmt: skip
def test_wrappers_are_taken_off(
    wrap: Callable[[dict[str, Tensor]], Any], held: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(wrap(held), tmp_path / "net.pt")
    torch.testing.assert_close(state(tmp_path / "net.pt"), held, rtol=0, atol=0)


def test_what_was_taken_off_is_told(held: dict[str, Tensor], tmp_path: Path) -> None:
    wrapped = {"state_dict": {f"module.{k}": v for k, v in held.items()}, "state_dict_ema": held}
    torch.save(wrapped, tmp_path / "net.pt")
    notes = " | ".join(load(SPEC, weights=str(tmp_path / "net.pt"), device="cpu").notes)
    for part in ("'state_dict' in net.pt", "state_dict_ema, which was not used", "module."):
        assert part in notes


def test_a_network_with_a_part_called_model_keeps_it() -> None:
    network = nn.Sequential()
    network.add_module("model", nn.Linear(2, 3))
    own = {name: torch.full_like(value, 7) for name, value in network.state_dict().items()}
    assert fit(network, State(dict(own)), what="net") == []
    torch.testing.assert_close(dict(network.state_dict()), own, rtol=0, atol=0)
    fit(network, State({f"model.{name}": value * 2 for name, value in own.items()}), what="net")
    assert float(network.state_dict()["model.bias"][0]) == 14


def test_a_wrong_number_of_classes_is_named_as_such(held: dict[str, Tensor], tmp_path: Path) -> None:
    with load(f"{SPEC}&classes=10", weights="random", device="cpu").opened() as module:
        save_file(dict(module.state_dict()), tmp_path / "ten.safetensors")
    with pytest.raises(XaiError, match=r"1000 classes; got weights with 10 classes.*Add \?classes=10") as caught:
        load(SPEC, weights=str(tmp_path / "ten.safetensors"))
    assert "fc.weight is 10x" in str(caught.value)
    assert load(f"{SPEC}&classes=10", weights=str(tmp_path / "ten.safetensors"), device="cpu").labels is None


def test_other_networks_weights_are_refused(held: dict[str, Tensor], tmp_path: Path) -> None:
    renamed = {f"encoder.{k}": v for k, v in held.items()}
    save_file(renamed, tmp_path / "renamed.safetensors")
    with pytest.raises(XaiError, match=r"missing \(.*, \.\.\.\).*unexpected \(encoder\..*None of the names fits"):
        load(SPEC, weights=str(tmp_path / "renamed.safetensors"))
    short = {k: v for k, v in held.items() if k != "conv1.0.weight"}
    save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(XaiError, match=r"1 missing \(conv1\.0\.weight\)"):
        load(SPEC, weights=str(tmp_path / "short.safetensors"))
    other = {k: (v[:, :, :1] if k == "conv1.0.weight" else v) for k, v in held.items()}
    save_file({k: v.contiguous() for k, v in other.items()}, tmp_path / "other.safetensors")
    with pytest.raises(XaiError, match=r"other shapes: conv1\.0\.weight is .*x3x1x3, not .*x3x3x3"):
        load(SPEC, weights=str(tmp_path / "other.safetensors"))


def test_weights_that_are_not_finite_are_refused(held: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({**held, "fc.bias": held["fc.bias"] * float("nan")}, tmp_path / "nan.safetensors")
    with pytest.raises(XaiError, match=r"NaN or infinity in fc\.bias"):
        load(SPEC, weights=str(tmp_path / "nan.safetensors"))


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_that_needs_code_is_refused_and_not_run(form: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "the code ran", tmp_path / "net.pt"
    torch.save({"state_dict": {"a": Trap(mark)}}, path) if form == "torch" else path.write_bytes(
        pickle.dumps({"a": Trap(mark)}, protocol=2)
    )
    with pytest.raises(
        XaiError, match=r"without running code; got .*a pickle that needs (posix|nt)\.mkdir.*It was not opened"
    ):
        load(SPEC, weights=str(path))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()  # the trap works where it is sprung


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "net.pt")
    with pytest.raises(XaiError, match=r"a pickle that needs torch\.nn\.modules\.linear\.Linear"):
        read_state(tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the empty file"),
        (b"garbage, and more garbage, and more of it still", "damaged or something else"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "the web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 50, "HDF5"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "holds no tensor"),
        (b"\xff\0\0\0\0\0\0\0{}      ", "which is damaged"),
    ],
)
def test_files_that_are_something_else(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    with pytest.raises(XaiError, match=sentence):
        load(SPEC, weights=str(path))


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_a_truncated_file(name: str, held: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(held, path) if path.suffix == ".safetensors" else torch.save(held, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(XaiError, match="damaged"):
        load(SPEC, weights=str(path))


@pytest.mark.parametrize(
    ("content", "held_there"),
    [([1, 2], "a list"), ({"epoch": 3}, "a dict of 'epoch'"), (torch.ones(2), "a Tensor"), ({}, "a dict")],
)
def test_a_file_without_a_state_dict_says_what_it_holds(content: Any, held_there: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(XaiError, match=f"which holds {held_there}"):
        read_state(tmp_path / "net.pt")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(XaiError, match="a file that exists, or random"):
        load(SPEC, weights=str(tmp_path / "none.pt"))
    with pytest.raises(XaiError, match="the folder"):
        load(SPEC, weights=str(tmp_path))


def test_timm_translates_a_vision_transformer_of_another_size(tmp_path: Path) -> None:
    with load("timm:test_vit", weights="random", device="cpu").opened() as module:
        save_file(dict(module.state_dict()), tmp_path / "large.safetensors")
    model = load("timm:test_vit?size=96", weights=str(tmp_path / "large.safetensors"), device="cpu")
    assert model(model.example()).shape == (1, 1000)
    assert any("timm's own rules" in note for note in model.notes)
    with pytest.raises(XaiError, match="those of timm:test_vit2; got names that differ"):
        load("timm:test_vit2", weights=str(tmp_path / "large.safetensors"))


def test_mnasnet_loads_from_safetensors_although_it_asks_for_a_version(tmp_path: Path) -> None:
    model = load("torchvision:mnasnet0_5?size=32", weights="random", device="cpu")
    with model.opened() as module:
        save_file(dict(module.state_dict()), tmp_path / "net.safetensors")
    again = load(model.spec, weights=str(tmp_path / "net.safetensors"), device="cpu")
    assert again.weights_hash == model.weights_hash


def test_densenets_old_names_are_read(tmp_path: Path) -> None:
    model = load("torchvision:densenet121", weights="random", device="cpu")
    with model.opened() as module:
        old = {
            k.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v for k, v in module.state_dict().items()
        }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    save_file(old, tmp_path / "old.safetensors")
    again = load(model.spec, weights=str(tmp_path / "old.safetensors"), device="cpu")
    assert again.weights_hash == model.weights_hash
