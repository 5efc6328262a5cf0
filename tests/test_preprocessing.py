"""Preprocessing: the pixels that torchvision and timm give, awkward pictures, and the frame back to the original."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pil
from torch import Tensor
from torch.testing import assert_close

from xai.errors import XaiError
from xai.images import Image, load_images
from xai.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Frame, Preprocessing, unit
from xai.torchvision_import import ensure_torchvision
from xai.zoo.loading import load

PHOTOGRAPHS = ("coffee", "chelsea", "rocket", "astronaut")  # 600 x 400, 451 x 300, 640 x 427, 512 x 512
PLAIN = Preprocessing((32, 32), (0.0,), (1.0,))


def photograph(name: str) -> np.ndarray:
    return np.asarray(getattr(skimage.data, name)())


def picture(pixels: np.ndarray | Tensor, **more: Any) -> Image:
    return load_images(pixels, **more)[0]


def of_transforms(transforms: Any) -> Preprocessing:
    """What torchvision's ImageClassification preset says, in our words."""
    (size,), (resize,) = transforms.crop_size, transforms.resize_size
    return Preprocessing((size, size), tuple(transforms.mean), tuple(transforms.std), resize=resize,
                         interpolation=transforms.interpolation.value)  # fmt: skip


def levels_apart(one: Tensor, two: Tensor, std: tuple[float, ...]) -> Tensor:
    """How many of 255 grey levels each value differs by."""
    assert one.shape == two.shape
    return (one - two).abs() * torch.tensor(std).view(-1, 1, 1) * 255


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize(
    ("weights", "tensor_levels"),
    [("ResNet50_Weights.IMAGENET1K_V1", 1), ("ResNet50_Weights.IMAGENET1K_V2", 1), ("Inception_V3_Weights.DEFAULT", 1),
     ("EfficientNet_B0_Weights.DEFAULT", 6), ("ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1", 16)],
)  # fmt: skip
def test_agrees_with_the_transforms_of_torchvisions_weights(name: str, weights: str, tensor_levels: int) -> None:
    """On PIL pictures, which networks are trained on: at most 2 levels of 255, 0.02 on average. On tensors torchvision
    resizes floats, and bicubic ones differ at hard edges."""
    transforms = ensure_torchvision().models.get_weight(weights).transforms()
    pixels = photograph(name)
    ours = of_transforms(transforms)(picture(pixels)).input
    from_pil = levels_apart(ours, transforms(Pil.fromarray(pixels)), tuple(transforms.std))
    assert from_pil.max() < 2.01
    assert from_pil.mean() < 0.02
    from_tensor = levels_apart(ours, transforms(torch.from_numpy(pixels).permute(2, 0, 1)), tuple(transforms.std))
    assert from_tensor.max() < tensor_levels + 0.01
    assert from_tensor.mean() < 0.25


def test_nearest_takes_the_pixel_that_pil_takes() -> None:
    transforms = ensure_torchvision().transforms
    resized = transforms.Resize(97, transforms.InterpolationMode.NEAREST)(Pil.fromarray(photograph("coffee")))
    expected = transforms.CenterCrop(64)(resized)
    ours = Preprocessing((64, 64), (0.0,), (1.0,), resize=97, interpolation="nearest")(picture(photograph("coffee")))
    other = (ours.seen != np.array(expected)).any(axis=(0, 2))
    assert other.sum() <= 1  # a column whose centre falls between two pixels


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "vit_tiny_patch16_224"])
def test_agrees_with_the_transform_of_timm(name: str) -> None:
    model = load(f"timm:{name}", weights="random", device="cpu")
    from timm.data import create_transform, resolve_model_data_config

    with model.opened() as module:
        transform: Any = create_transform(**resolve_model_data_config(module))
    assert model.preprocessing.std is not None
    for photo in PHOTOGRAPHS:
        ours = model.preprocessing(picture(photograph(photo))).input
        apart = levels_apart(ours, transform(Pil.fromarray(photograph(photo))), model.preprocessing.std)
        assert apart.max() < 1.01
        assert apart.mean() < 0.02


SHAPES = [(64, 64), (64, 96), (96, 64), (33, 47), (20, 500), (500, 20), (8, 8), (3, 5), (1, 1), (1, 40), (40, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("crop", ["center", "squash"])
@pytest.mark.parametrize(("size", "resize"), [((32, 32), None), ((32, 32), 40), ((24, 48), None), ((48, 24), 30)])
def test_every_size_of_picture_fills_the_input(
    shape: tuple[int, int], crop: str, size: tuple[int, int], resize: int | None
) -> None:
    """The frame lies inside the picture, to rounding, and is all of it along an axis that is not cut."""
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8))
    prepared = Preprocessing(size, (0.0,), (1.0,), crop=crop, resize=resize)(picture(noise))
    assert prepared.input.shape == (3, *size)
    assert prepared.seen.shape == (*size, 3)
    assert_close(prepared.input, torch.from_numpy(prepared.seen).permute(2, 0, 1) / 255, rtol=0, atol=0.5 / 255)
    (x0, y0), (x1, y1) = prepared.frame.box(*size)
    assert -1e-9 <= x0 < x1 <= shape[1] + 1e-9
    assert -1e-9 <= y0 < y1 <= shape[0] + 1e-9
    if crop == "squash":
        assert_close([float(x0), float(y0), x1, y1], [0.0, 0.0, float(shape[1]), float(shape[0])], rtol=0, atol=1e-9)
    elif resize is None:
        assert_close(max((x1 - x0) / shape[1], (y1 - y0) / shape[0]), 1.0, rtol=0.02, atol=0.0)


def square(shape: tuple[int, int], box: tuple[int, int, int, int], channels: int = 3) -> Image:
    """White at x0, y0, x1, y1 (exclusive) on black."""
    pixels = np.zeros((channels, *shape), np.uint8)
    x0, y0, x1, y1 = box
    pixels[:, y0:y1, x0:x1] = 255
    return picture(torch.from_numpy(pixels))


@pytest.mark.parametrize(
    ("preprocessing", "shape", "box"),
    [
        (Preprocessing((64, 64), (0.0,), (1.0,)), (64, 64), (10, 20, 30, 28)),
        (Preprocessing((64, 64), (0.0,), (1.0,), resize=80), (200, 300), (120, 60, 170, 130)),
        (Preprocessing((64, 64), (0.0,), (1.0,), resize=80), (301, 199), (60, 140, 130, 170)),
        (Preprocessing((64, 64), (0.0,), (1.0,), resize=64), (30, 45), (15, 6, 28, 22)),
        (Preprocessing((64, 64), (0.0,), (1.0,), crop="squash"), (200, 100), (20, 60, 70, 160)),
        (Preprocessing((40, 90), (0.0,), (1.0,)), (120, 130), (30, 45, 90, 80)),
        (Preprocessing((90, 40), (0.0,), (1.0,), resize=50), (130, 120), (45, 30, 80, 90)),
        (Preprocessing((48, 48), (0.0,), (1.0,), interpolation="bicubic", resize=60), (211, 333), (130, 70, 190, 150)),
        (Preprocessing((48, 48), (0.0,), (1.0,), interpolation="nearest", resize=60), (240, 360), (132, 72, 192, 150)),
    ],
)  # fmt: skip
def test_what_lies_in_a_box_of_the_picture_lies_where_the_frame_says(
    preprocessing: Preprocessing, shape: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    """Edges to a pixel of the input, the centre of mass to a twentieth (nearest: to a half)."""
    prepared = preprocessing(square(shape, box))
    bright = prepared.input[0]
    x0, y0, x1, y1 = prepared.frame.to_input(np.array([box], float))[0]
    ys, xs = torch.nonzero(bright > 0.5, as_tuple=True)
    found = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=torch.float64)
    assert_close(found, torch.tensor([x0, y0, x1, y1], dtype=torch.float64), rtol=0, atol=0.76)
    mass = bright.double() / bright.double().sum()
    centre = [(mass.sum(i) * (torch.arange(bright.shape[1 - i]) + 0.5)).sum().item() for i in (0, 1)]
    near = 0.5 if preprocessing.interpolation == "nearest" else 0.05
    assert_close(centre, [(x0 + x1) / 2, (y0 + y1) / 2], rtol=0, atol=near)


frames = st.builds(Frame, *[st.floats(-50, 500)] * 2, *[st.floats(0.01, 50)] * 2)


@settings(max_examples=50, deadline=None)
@given(frames, st.lists(st.floats(-100, 1000), min_size=4, max_size=4), st.tuples(*[st.integers(1, 999)] * 2))
def test_a_frame_maps_there_and_back(frame: Frame, box: list[float], size: tuple[int, int]) -> None:
    inside = frame.to_input(np.array([box]))[0]
    back = [frame.x0 + inside[0] * frame.sx, frame.y0 + inside[1] * frame.sy,
            frame.x0 + inside[2] * frame.sx, frame.y0 + inside[3] * frame.sy]  # fmt: skip
    assert_close(back, box, rtol=1e-9, atol=1e-6)
    corners = np.array([[*frame.box(*size)[0], *frame.box(*size)[1]]])
    assert_close(frame.to_input(corners)[0].tolist(), [0.0, 0.0, float(size[1]), float(size[0])], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint16, 65535), (np.float32, 1.0)])
def test_sixteen_bits_and_floats_give_what_eight_bits_give(dtype: type, top: float) -> None:
    """To half a level: only eight bits are rounded after the resize."""
    pixels = photograph("chelsea")
    other = (pixels.astype(np.float64) / 255 * top).round(0 if top > 1 else 12).astype(dtype)
    preprocessing = Preprocessing((64, 64), IMAGENET_MEAN, IMAGENET_STD, resize=72)
    one, two = (preprocessing(picture(p)) for p in (pixels, other))
    assert levels_apart(one.input, two.input, IMAGENET_STD).max() < 1.2
    assert np.abs(one.seen.astype(int) - two.seen).max() <= 1


@cache
def five() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, 20, 30), np.uint8)


def test_one_channel_is_repeated_and_five_are_taken_as_they_are() -> None:
    grey = photograph("chelsea")[..., 0]
    prepared = PLAIN(picture(grey))
    assert prepared.input.shape == (3, 32, 32)
    assert_close(prepared.input[0], prepared.input[2], rtol=0, atol=0)
    many = Preprocessing((20, 30), (0.5,) * 5, (0.25,) * 5, channels=5)(picture(torch.from_numpy(five())))
    assert_close(many.input, (torch.from_numpy(five()) / 255 - 0.5) / 0.25)
    assert_close(torch.from_numpy(many.seen), torch.from_numpy(five()[:3].transpose(1, 2, 0).copy()))


def test_colour_becomes_grey_as_pil_does_it() -> None:
    pixels = photograph("coffee")
    ours = Preprocessing((400, 600), (0.0,), (1.0,), channels=1)(picture(pixels))
    expected = torch.from_numpy(np.array(Pil.fromarray(pixels).convert("L"))) / 255
    assert ours.input.shape == (1, 400, 600)
    assert_close(ours.input[0], expected, rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize(("has", "wants"), [(5, 3), (3, 5), (2, 3), (4, 3), (5, 1)])
def test_channels_that_do_not_fit_are_told(has: int, wants: int) -> None:
    image = picture(torch.zeros(has, 8, 8, dtype=torch.uint8))
    with pytest.raises(XaiError, match=f"picture must be of {wants} channels, as the model takes; got {has}[.]"):
        Preprocessing((8, 8), (0.0,), (1.0,), channels=wants)(image)


def test_a_normalised_tensor_passes_through_at_its_own_size() -> None:
    tensor = torch.randn(3, 50, 70, generator=torch.Generator().manual_seed(0))
    preprocessing = Preprocessing((32, 32), IMAGENET_MEAN, IMAGENET_STD)
    prepared = preprocessing(picture(tensor, normalised=True))
    assert_close(prepared.input, tensor, rtol=0, atol=0)
    assert prepared.frame == Frame(0, 0, 1, 1)
    seen = torch.from_numpy(prepared.seen).permute(2, 0, 1) / 255
    assert_close(seen, preprocessing.undo(tensor), rtol=0, atol=0.51 / 255)
    with pytest.raises(XaiError, match="the tensor picture must be of 3 channels; got 4. Check the order"):
        preprocessing(picture(torch.zeros(4, 8, 8), normalised=True))


@pytest.mark.parametrize("values", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0), (1.0, 0.0)])
def test_undo_inverts_and_constant_is_a_flat_picture(values: tuple[float, float]) -> None:
    span = abs(values[1] - values[0])
    mean, std = tuple(m * span for m in IMAGENET_MEAN), tuple(s * span for s in IMAGENET_STD)
    preprocessing = Preprocessing((24, 24), mean, std, range=values, crop="squash")
    prepared = preprocessing(picture(photograph("coffee")))
    seen = torch.from_numpy(prepared.seen).permute(2, 0, 1) / 255
    assert_close(preprocessing.undo(prepared.input), seen, rtol=0, atol=1e-5)
    assert_close(preprocessing.undo(prepared.input[None].double()).float()[0], preprocessing.undo(prepared.input))
    for level in (0.0, 0.2, 1.0):
        flat = preprocessing(picture(np.full((9, 7, 3), round(level * 255), np.uint8)))
        assert_close(flat.input, preprocessing.constant(level).expand(3, 24, 24), rtol=1e-5, atol=1e-5)


def test_undo_without_a_known_normalisation_stretches_each_picture() -> None:
    stack = torch.stack([torch.linspace(-3, 5, 12), torch.full((12,), 2.0)]).reshape(2, 3, 2, 2)
    undone = Preprocessing((2, 2)).undo(stack)
    assert_close(undone[0].flatten(), torch.linspace(0, 1, 12))
    assert_close(undone[1], torch.zeros(3, 2, 2))


def test_an_unknown_normalisation_is_asked_for_in_one_sentence() -> None:
    unknown = Preprocessing((8, 8))
    assert "mean and std not known" in unknown.describe()
    with pytest.raises(XaiError, match=r"the preprocessing of this model must be known .* got no mean and std\. Add"):
        unknown(picture(photograph("coffee")))
    with pytest.raises(XaiError, match="Add mean and std, or take the baseline zero"):
        unknown.constant(0.5)
    tensor = torch.ones(3, 4, 4)
    assert_close(unknown(picture(tensor, normalised=True)).input, tensor)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"crop": "left"}, 'crop must be "center" or "squash"; got \'left\''),
        ({"interpolation": "lanczos"}, "interpolation must be .* got 'lanczos'"),
        ({"mean": (0.1, 0.2)}, "mean must be one number or 3, one a channel"),
        ({"std": (1.0, 1.0, 0.0)}, "std must be non-zero"),
    ],
)  # fmt: skip
def test_fields_that_do_not_fit_are_told(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(XaiError, match=said):
        Preprocessing(**({"size": (8, 8), "mean": (0.0,), "std": (1.0,)} | fields))


def test_the_page_says_what_is_done() -> None:
    full = Preprocessing((224, 200), (0.5,), (0.25,), resize=256, interpolation="bicubic", range=(0, 255))
    assert full.describe() == ("short side 256, centre crop 224x200 (bicubic, antialiased); range 0 to 255; "
                               "mean 0.5, 0.5, 0.5; std 0.25, 0.25, 0.25")  # fmt: skip
    assert full.with_options(crop="squash").describe().startswith("resized to 224x200 (bicubic")
    assert full.with_options(resize=None).describe().startswith("resized until it fills, centre crop 224x200 (bicubic")
    assert Preprocessing((64, 64)).describe().startswith("short side 64, centre crop 64x64")


def test_unit_scales_each_type_by_its_full_range() -> None:
    for pixels in (np.array([0, 255], np.uint8), np.array([0, 65535], np.uint16), np.array([0, 1], np.float32)):
        assert_close(unit(pixels), torch.tensor([0.0, 1.0]), rtol=0, atol=0)


def test_a_picture_is_not_changed_by_being_prepared() -> None:
    image = picture(photograph("coffee"))
    before = image.pixels.copy()
    prepared = Preprocessing((400, 600), (0.0,), (1.0,))(image)
    prepared.input.fill_(7)
    prepared.seen[:] = 3
    assert np.array_equal(image.pixels, before)


def test_a_picture_far_longer_than_wide_is_refused_before_memory_is() -> None:
    thin = load_images(torch.zeros(3, 1, 100_000))[0]
    with pytest.raises(XaiError, match="would become 256 x 25600000 first"):
        Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3, resize=256)(thin)
    assert Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3, crop="squash")(thin).input.shape == (3, 224, 224)
