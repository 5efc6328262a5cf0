"""The networks that ship, and the real one beside the checkout, say through `xai` itself what is claimed of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from xai.images import Images, load_images
from xai.model import Model
from xai.zoo import shipped
from xai.zoo.loading import load

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")


def answers(model: Model, images: Images) -> list[tuple[str, float, str | None]]:
    """(class said, its probability, true label) of every picture."""
    found = []
    for batch in model.prepare(images, chunk=16):
        shares, classes = batch.scores().max(1)
        found += [(model.class_name(c), p, None if t is None else str(t))
                  for c, p, t in zip(classes.tolist(), shares.tolist(), batch.truth, strict=True)]
    return found


@pytest.fixture(scope="module")
def photo20() -> Model:
    return load("xai:photo20", device="cpu")


def test_photo20_knows_the_samples_as_its_card_says(photo20: Model) -> None:
    card = shipped.card("photo20")
    assert card is not None
    for name, told in card["pictures"].items():
        ((said, share, _),) = answers(photo20, load_images(f"sample:{name}"))
        assert said == told["class"]
        assert share == pytest.approx(told["probability"], abs=0.005)
    assert {n: t["class"] for n, t in card["pictures"].items()} == {
        "coffee": "espresso", "rocket": "projectile", "chelsea": "tabby"}
    assert min(card["pictures"][name]["probability"] for name in ("coffee", "rocket")) > 0.8


def test_photo20_is_as_small_as_promised() -> None:
    assert shipped.weights_file("photo20").stat().st_size <= 4_000_000


@needs_shared
def test_photo20_reaches_the_accuracy_of_its_card(photo20: Model) -> None:
    card = shipped.card("photo20")
    assert card is not None
    found = answers(photo20, load_images(SHARED / "data/tinyimagenet20_val.parquet"))
    right = sum(said == true for said, _, true in found)
    assert len(found) == card["validation"]["n"] == 1000
    assert abs(right / len(found) - card["validation"]["accuracy"]) <= 0.002  # rounding may tip a picture over
    assert right >= 800


@needs_shared
def test_squeezenet_knows_34_of_the_40_photographs() -> None:
    """The figures of ../shared/README.md: 34 right with p > 0.6, 6 wrong."""
    weights = str(SHARED / "models/squeezenet1_0_imagenet.safetensors")
    model = load("torchvision:squeezenet1_0", weights=weights, device="cpu")
    images = load_images(SHARED / "images")
    true = [Path(name).stem.partition("_")[2].replace("_", " ") for name in images.names]
    found = answers(model, images)
    right = [(share, t) for (said, share, _), t in zip(found, true, strict=True) if said.lower() == t.lower()]
    assert len(images) == 40
    assert len(right) == 34
    assert min(right)[0] > 0.6
