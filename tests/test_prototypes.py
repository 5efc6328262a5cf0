"""Prototypes: the explanation is what the network computes, the five checks tell what is planted, the digits hold."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from analyzers.concepts._prototype_checks import as_jpeg, corruptions, duplicates, patch, purity, without
from analyzers.concepts.prototypes import Prototypes
from tests.prototype_nets import Distances, Patches
from xai.errors import XaiError
from xai.images import Image, Images
from xai.model import Model
from xai.panels import Heatmap, Matrix, Number, Panel, Picture, Table
from xai.prototype_head import evidence, falling, find_head, nearest, own_classes
from xai.result import Result
from xai.subject import Subject
from xai.zoo import shipped
from xai.zoo.loading import load

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def digits(count: int = 60) -> tuple[Images, Tensor, Tensor]:
    """Held-out digits as pictures, as inputs (n, 1, 8, 8), and their classes; the split of the training script."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        from train_digits_prototypes import Recipe, parts, pictures
    finally:
        sys.path.remove(str(EXAMPLES))
    x, classes = pictures()
    last = parts(Recipe(), len(x))[2][:count]
    made = [Image.of(f"digit {i}", (x[i] * 255).round().to(torch.uint8).numpy(), label=str(int(classes[i])))
            for i in last.tolist()]
    return Images.of(made), x[last], classes[last]


@pytest.fixture(scope="module")
def network() -> Model:
    return load("xai:digits-prototypes", device="cpu")


@pytest.fixture(scope="module")
def explained(network: Model) -> Result:
    return Prototypes(pictures=4)(Subject((network,), digits()[0]))


def panel(result: Result, key: str, picture: str | None = None) -> Panel:
    (found,) = (p for p in result.panels if p.key == key and p.picture == picture)
    return found


def verdict(result: Result, name: str) -> bool | None:
    (found,) = (v.passed for v in result.verdicts if v.name == name)
    return found


# --- the shipped network ---
def test_the_digits_network_reaches_what_its_card_says(network: Model) -> None:
    card = shipped.card("digits-prototypes")
    assert card is not None
    images, _, classes = digits(card["validation"]["n"])
    said = torch.cat([batch.output().argmax(1) for batch in network.prepare(images)])
    accuracy = float((said == classes).double().mean())
    assert accuracy == pytest.approx(card["validation"]["accuracy"], abs=1e-4)
    assert accuracy >= 0.95
    file = shipped.weights_file("digits-prototypes")
    assert card["weights"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert card["weights"]["bytes"] == file.stat().st_size <= 200_000


def test_the_input_is_one_channel_of_eight_pixels(network: Model) -> None:
    images, x, _ = digits(3)
    (batch,) = network.prepare(images)
    assert_close(batch.inputs, x, rtol=0, atol=1e-6)
    with pytest.raises(XaiError, match="This network takes one channel"):
        load("xai:digits-prototypes?channels=3", device="cpu")


def test_what_a_picture_is_told_is_what_the_network_computes(network: Model, explained: Result) -> None:
    """Distances and terms by loops of my own over the raw weights, in float64."""
    images, x, _ = digits()
    with network.opened() as module, torch.no_grad():
        state = {k: v.double().clone() for k, v in module.state_dict().items()}
        codes = module.encoder(x[:4]).double()
    points, weight = state["head.points"], state["head.weight"]
    for i in range(4):
        distances = [float(((codes[i] - p) ** 2).sum()) for p in points]
        logits = [sum(distances[j] * float(weight[j, c]) for j in range(15)) for c in range(10)]
        one, two = sorted(range(10), key=lambda c: -logits[c])[:2]
        table = panel(explained, "evidence", images[i].hash)
        assert isinstance(table, Table)
        names = [f"{j + 1} ({int(weight[j].argmin())})" for j in range(15)]
        rows = {row[0]: row[1:] for row in table.rows}
        for j, name in enumerate(names):
            expected = (distances[j], distances[j] * float(weight[j, one]), distances[j] * float(weight[j, two]))
            assert rows[name][:3] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        for name in ("sum", "the network's logit"):
            assert rows[name][1:3] == pytest.approx((logits[one], logits[two]), rel=1e-5, abs=1e-5)
        assert rows["sum"][1:] == pytest.approx(rows["the network's logit"][1:], abs=1e-6 * max(map(abs, logits)))
    assert verdict(explained, "exact") is True
    (off,) = (v.value for v in explained.verdicts if v.name == "exact")
    assert off is not None
    assert off <= 1e-6


def test_the_class_table_and_the_decoded_prototypes_are_the_networks(network: Model, explained: Result) -> None:
    with network.opened() as module, torch.no_grad():
        weight, decoded = module.head.weight.numpy().copy(), module.head.decode(module.head.points)
    table, sheet = panel(explained, "class_table"), panel(explained, "prototypes")
    assert isinstance(table, Matrix)
    assert isinstance(sheet, Picture)
    assert np.array_equal(table.values, weight)
    for j in range(15):
        y, x = (part * 80 for part in divmod(j, 8))
        tile = sheet.pixels[y : y + 72 : 9, x : x + 72 : 9, 0]
        assert np.array_equal(tile, (decoded[j, 0] * 255).round().numpy().astype(np.uint8))


def test_adding_a_vector_to_every_column_of_the_class_table_changes_no_probability(network: Model) -> None:
    _, x, _ = digits(8)
    with network.opened() as module, torch.no_grad():
        codes = module.encoder(x)
        distances = module.head.distances(codes)
        before = (distances @ module.head.weight).softmax(1)
        after = (distances @ (module.head.weight + torch.linspace(-0.2, 0.2, 15)[:, None])).softmax(1)
    assert_close(before, after, rtol=0, atol=1e-5)


# --- the protocol ---
def test_evidence_of_both_kinds_of_head_sums_to_its_logits() -> None:
    torch.manual_seed(0)
    for head, z in ((Distances(5, 3), torch.randn(4, 5)), (Patches(5, 3), torch.randn(4, 5, 3, 2))):
        least = nearest(head.distances(z))
        assert_close(evidence(head, least).sum(1), head(z), rtol=1e-5, atol=1e-5)
        assert find_head(nn.Sequential(nn.ReLU(), head)) is head
        assert own_classes(head).tolist() == [0, 1, 2] * 2
    assert not falling(Distances(5, 3), torch.zeros(1))
    assert falling(Patches(5, 3), torch.zeros(1))
    assert float(Patches(5, 3).similarities(torch.zeros(1))) == pytest.approx(9.2103, abs=1e-4)


class Biased(Distances):
    """A head that does more than the protocol says."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) + 0.5


def patches(head: nn.Module) -> Model:
    """Cells of 4 pixels, their mean colour, and a head."""
    return Model(nn.Sequential(nn.AvgPool2d(4), head), mean=[0.5] * 3, std=[0.25] * 3, size=16,
                 labels=("red", "green", "blue"))


def coloured(seed: int = 0) -> Images:
    """A cell of one full colour on a grey ground, nine pictures."""
    rng, made = np.random.default_rng(seed), []
    for i in range(9):
        pixels = 0.5 + 0.02 * rng.standard_normal((3, 16, 16))
        y, x = 4 * rng.integers(4, size=2)
        pixels[:, y : y + 4, x : x + 4] = 0.05
        pixels[i % 3, y : y + 4, x : x + 4] = 0.95
        made.append(Image.of(f"{i}.png", pixels.clip(0, 1).astype(np.float32), label=i % 3,
                             boxes=np.array([[x, y, x + 4, y + 4]], dtype=np.float32)))
    return Images.of(made)


def colours() -> Patches:
    """One prototype a class: its colour."""
    head = Patches(3, 3, each=1)
    with torch.no_grad():
        head.points.copy_(3.6 * torch.eye(3) - 1.8)
    return head


def test_a_protopnet_head_has_its_patch_found_and_its_checks_pass() -> None:
    images = coloured()
    result = Prototypes(pictures=9, shown=1, neighbours=3)(Subject((patches(colours()),), images))
    assert {v.name: v.passed for v in result.verdicts} == {
        "finite": True, "exact": True, "deletion": True, "no duplicates": True, "pure": True}
    purities = panel(result, "purity")
    assert isinstance(purities, Number)
    assert purities.value == 1
    for image in images:
        found = panel(result, "near_1", image.hash)
        assert isinstance(found, Heatmap)
        assert image.boxes is not None
        y, x = np.unravel_index(found.values.argmax(), found.values.shape)
        assert (4 * x, 4 * y) == tuple(image.boxes[0][:2])
    sheet = panel(result, "prototypes")
    assert isinstance(sheet, Picture)
    for j in range(3):  # the nearest patches are of the prototype's colour
        assert sheet.pixels[20:52, 80 * j + 20 : 80 * j + 52].mean((0, 1)).argmax() == j


def test_a_head_with_a_bias_is_told_from_its_explanation() -> None:
    torch.manual_seed(0)
    model = Model(nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), Biased(3, 3)), mean=[0.5] * 3, std=[0.25] * 3, size=16)
    result = Prototypes()(Subject((model,), coloured()))
    assert verdict(result, "exact") is False


def test_a_network_without_prototypes_gives_the_sentence() -> None:
    model = Model(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), mean=[0.5] * 3, std=[0.25] * 3, size=16, spec="a:net")
    with pytest.raises(XaiError, match=r"compares with prototypes; got a:net, in which none is seen\. Give the head"):
        Prototypes()(Subject((model,), coloured()))


# --- the five checks ---
def test_purity_is_one_on_planted_clusters_and_none_where_the_class_is_wrong() -> None:
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    points = (centres[:, None] + 0.1 * torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(0))).flatten(0, 1)
    distances = torch.cdist(points, centres).square()
    classes = torch.arange(3).repeat_interleave(20)
    assert purity(distances, classes, torch.tensor([0, 1, 2]), 10).tolist() == [1, 1, 1]
    assert purity(distances, classes, torch.tensor([0, 2, 1]), 10).tolist() == [1, 0, 0]
    assert purity(distances, classes, torch.tensor([0, 1, 2]), 60).tolist() == pytest.approx([1 / 3] * 3)


def test_equal_prototypes_are_duplicates_and_others_are_not() -> None:
    points = torch.tensor([[0.0, 0], [3, 0], [0, 3], [3, 0], [3, 0.01]])
    assert duplicates(points[:3], 0.01) == []
    assert duplicates(points, 0.01) == [(1, 3), (1, 4), (3, 4)]
    assert duplicates(points[:1], 0.01) == []


def test_the_nearest_picture_and_its_distance_are_the_least_of_all(explained: Result, network: Model) -> None:
    _, x, _ = digits()
    with network.opened() as module, torch.no_grad():
        distances = module.head.distances(module.encoder(x))
    table = panel(explained, "prototype_table")
    assert isinstance(table, Table)
    assert [row[3] for row in table.rows] == pytest.approx(distances.amin(0).tolist(), rel=1e-5)
    images = digits()[0]
    assert [row[4] for row in table.rows] == [images.names[i] for i in distances.argmin(0).tolist()]


def test_deleting_outside_the_patch_leaves_a_prototype_where_it_is_and_inside_it_does_not() -> None:
    head, x = colours(), torch.zeros(3, 16, 16)
    x[:, 4:8, 8:12] = head.points[0].detach()[:, None, None]
    net = nn.Sequential(nn.AvgPool2d(4), head)

    def least(image: Tensor) -> float:
        return float(head.distances(net[0](image[None]))[0, 0].min().detach())

    box = patch(head.distances(net[0](x[None]))[0, 0].detach(), 16, 16)
    assert box[0] >= 7
    assert box[1] >= 3
    assert box[2] <= 13
    assert box[3] <= 9
    assert least(x) == pytest.approx(0, abs=1e-9)
    outside = x.clone()
    outside[:, 12:, :] = x.mean((1, 2), keepdim=True)
    assert least(outside) == least(x)
    assert least(without(x, box)) > 1
    assert patch(torch.ones(1, 1), 8, 6) == (0, 0, 6, 8)


def test_corruptions_are_jpeg_and_noise_of_that_size() -> None:
    model = patches(colours())
    (batch,) = model.prepare(coloured())
    found = corruptions(batch, 0, 75, 0.05)
    assert list(found) == ["JPEG 75", "noise 0.05"]
    noise = (found["noise 0.05"] - batch.inputs[0]) * 0.25
    assert float(noise.std()) == pytest.approx(0.05, rel=0.1)
    assert_close(found["JPEG 75"], model.preprocessing(as_jpeg(batch.images[0], 75)).input)
    assert 0 < float((found["JPEG 75"] - batch.inputs[0]).abs().max()) < 4
    assert_close(corruptions(batch, 0, 75, 0.0)["noise 0"], batch.inputs[0])
