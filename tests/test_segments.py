"""Segments: what holds for every method, equality with lime's own, label maps from files, outlines, mean colours."""

from __future__ import annotations

import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image as Pil
from torch import Tensor
from torch.testing import assert_close

from xai.errors import XaiError
from xai.images import Image, load_images
from xai.preprocessing import Frame, Preprocessing
from xai.segments import METHODS, lined, mean_colours, merged, outlines, segment, shares

SENTENCE = re.compile(r"^\S.* must (be|have) .+; got .+\. \S.*[.?]$", re.DOTALL)
QUARTERS = np.array([[0, 1], [2, 3]]).repeat(4, 0).repeat(6, 1)  # 8 x 12


def photo(name: str = "coffee", size: int = 96) -> np.ndarray:
    """(size, size, 3) uint8."""
    ready = Preprocessing((size, size), mean=(0.5,) * 3, std=(0.5,) * 3)
    return ready(load_images(f"sample:{name}")[0]).seen


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def refused(problem: pytest.ExceptionInfo[XaiError]) -> str:
    said = str(problem.value)
    assert SENTENCE.match(said), said
    return said


# --- what holds for every method ---
@pytest.mark.parametrize("how", METHODS)
@pytest.mark.parametrize("what", ["photograph", "noise", "wide", "tiny", "flat"])
def test_every_pixel_has_a_segment_and_every_segment_pixels(how: str, what: str) -> None:
    pixels = {"photograph": photo, "noise": lambda: noise(12, 12), "wide": lambda: noise(7, 31),
              "tiny": lambda: noise(2, 2), "flat": lambda: np.full((20, 30, 3), 90, np.uint8)}[what]()
    labels = segment(pixels, how, 16)
    assert labels.dtype == torch.int64
    assert labels.shape == pixels.shape[:2]
    assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
    assert_close(segment(pixels, how, 16), labels, rtol=0, atol=0)
    assert_close(shares(labels).sum(), torch.tensor(1.0, dtype=torch.float64))
    assert (shares(labels) > 0).all()


@pytest.mark.parametrize("name", ["coffee", "chelsea"])
def test_quickshift_is_what_lime_cuts(name: str) -> None:
    from lime.wrappers.scikit_image import SegmentationAlgorithm

    pixels = photo(name)
    for seed in (0, 7):  # which never reaches quickshift
        theirs = SegmentationAlgorithm("quickshift", kernel_size=4, max_dist=200, ratio=0.2, random_seed=seed)(pixels)
        assert len(np.unique(theirs)) > 5
        assert_close(segment(pixels, "quickshift"), torch.from_numpy(theirs).long(), rtol=0, atol=0)


def test_slic_starts_at_0_where_lime_has_a_segment_that_is_never_hidden() -> None:
    from lime.wrappers.scikit_image import SegmentationAlgorithm

    pixels = photo()
    theirs = SegmentationAlgorithm("slic", n_segments=64, compactness=25, sigma=1)(pixels)
    assert theirs.min() == 1
    assert_close(segment(pixels, "slic", 64), torch.from_numpy(theirs).long() - 1, rtol=0, atol=0)


@pytest.mark.parametrize("how", ["slic", "watershed", "grid"])
@pytest.mark.parametrize("count", [16, 64, 150])
def test_the_number_of_segments_is_near_what_was_asked(how: str, count: int) -> None:
    assert count / 1.6 <= int(segment(photo(), how, count).max()) + 1 <= count * 1.3


def test_a_grid_is_rows_of_cells_as_square_as_can_be() -> None:
    even = (torch.arange(8)[:, None] * 8 + torch.arange(8)).repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert_close(segment(noise(24, 24), "grid", 64), even, rtol=0, atol=0)
    wide = segment(noise(10, 40), "grid", 16)
    assert wide.unique().tolist() == list(range(16))
    assert wide[:, 0].unique().tolist() == [0, 8]
    assert wide[0].bincount().tolist() == [5] * 8


def test_more_segments_are_asked_for_than_there_are_pixels() -> None:
    for how in METHODS:
        assert int(segment(noise(3, 4), how, 1000).max()) < 12


@pytest.mark.parametrize("name", ["coffee", "rocket"])
def test_watershed_leaves_no_crumbs(name: str) -> None:
    pixels = photo(name)
    from skimage import color, filters, segmentation

    raw = segmentation.watershed(filters.sobel(color.rgb2gray(pixels)), 64, compactness=0.001)
    least = 96 * 96 / 64 / 8
    assert np.bincount(raw.ravel())[1:].min() < least
    labels = segment(pixels, "watershed", 64)
    assert int(labels.flatten().bincount().min()) >= least
    for part in torch.from_numpy(np.asarray(raw)).unique():  # a basin is never cut
        assert len(labels[torch.from_numpy(np.asarray(raw)) == part].unique()) == 1


def test_a_crumb_joins_the_neighbour_with_the_longest_border() -> None:
    labels = np.array([[5, 5, 5, 7], [5, 2, 2, 7], [5, 5, 5, 7], [5, 5, 5, 7]])
    # 2 touches 5 along five edges of pixels and 7 along one
    expected = np.where(labels == 2, 5, labels)
    assert merged(labels, 3).tolist() == expected.tolist()
    assert merged(labels, 2).tolist() == labels.tolist()
    assert len(np.unique(merged(labels, 100))) == 1
    columns = np.array([[1, 2, 3, 3, 3]] * 4)  # the first two together are still too small
    assert len(np.unique(merged(columns, 9))) == 1
    assert merged(columns, 5).tolist() == [[2, 2, 3, 3, 3]] * 4


@pytest.mark.parametrize("how", ["quickshift", "watershed"])
def test_smoothing_takes_speckle_from_the_segmentation_alone(how: str) -> None:
    rng = np.random.default_rng(0)
    clean = np.full((48, 48, 3), 60, dtype=np.uint8)
    clean[:, 21:] = 180
    speckled = np.clip(clean * rng.exponential(1, (48, 48, 1)), 0, 255).astype(np.uint8)
    before = speckled.copy()

    def purity(smooth: float) -> float:
        """The share of pixels that are on the side on which most of their segment is."""
        labels = segment(speckled, how, 16, smooth).numpy()
        side = np.arange(48) >= 21
        return sum(max((own[:, side]).sum(), (own[:, ~side]).sum()) for own in
                   (labels == s for s in range(labels.max() + 1))) / labels.size

    assert purity(1.0) > purity(0.0) + 0.05
    assert (speckled == before).all()
    assert_close(segment(speckled, "grid", 9, 2.0), segment(speckled, "grid", 9), rtol=0, atol=0)


def test_smoothing_mixes_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    import skimage.segmentation

    cut: list[np.ndarray] = []
    monkeypatch.setattr(skimage.segmentation, "slic", lambda image, **_: cut.append(image) or np.zeros((40, 40), int))
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:, :20, 0] = pixels[:, 20:, 2] = 200
    segment(pixels, "slic", 4, 3.0)
    (smooth,) = cut
    assert smooth.dtype == np.uint8
    assert (smooth[:, 0].tolist(), smooth[:, -1].tolist()) == ([[200, 0, 0]] * 40, [[0, 0, 200]] * 40)
    assert smooth[0, 20].tolist() != [0, 0, 200]


def test_no_random_state_is_touched() -> None:
    def states() -> tuple[Any, ...]:
        return repr(np.random.get_state()), random.getstate(), torch.get_rng_state().tolist()

    before = states()
    for how in METHODS:
        segment(noise(20, 20), how, 8, 1.0)
    assert states() == before


# --- label maps ---
def saved(folder: Path, kind: str) -> Path:
    """QUARTERS in one kind of file."""
    path = folder / f"labels.{'npy' if kind in ('npy', 'float npy') else 'tif' if kind == 'tiff' else 'png'}"
    if path.suffix == ".npy":
        np.save(path, QUARTERS * 10.0 if kind == "float npy" else QUARTERS - 5)
        return path
    if kind == "palette":  # all entries of one colour: the index counts
        picture = Pil.fromarray(QUARTERS.astype(np.uint8), "P")
        picture.putpalette([9, 9, 9] * 4)
    elif kind == "colours":
        picture = Pil.fromarray(np.array([[0, 0, 0], [0, 0, 9], [0, 9, 0], [9, 0, 0]], dtype=np.uint8)[QUARTERS])
    else:
        picture = Pil.fromarray((QUARTERS * 1000).astype(np.uint16) if kind == "16 bits" else QUARTERS.astype(np.uint8))
    picture.save(path)
    return path


@pytest.mark.parametrize("kind", ["npy", "float npy", "grey", "16 bits", "palette", "colours", "tiff"])
def test_a_label_map_comes_from_any_lossless_file(kind: str, tmp_path: Path) -> None:
    found = segment(noise(8, 12), str(saved(tmp_path, kind)))
    assert_close(found, torch.from_numpy(QUARTERS), rtol=0, atol=0)


def test_a_label_map_may_be_an_array_and_is_numbered_anew() -> None:
    odd = np.array([-3, 7, 8, 900])[QUARTERS]
    assert_close(segment(noise(8, 12), odd), torch.from_numpy(QUARTERS), rtol=0, atol=0)
    assert_close(segment(noise(8, 12), torch.from_numpy(odd).numpy() > 7),
                 torch.from_numpy((QUARTERS > 1).astype(int)), rtol=0, atol=0)


def test_a_folder_holds_one_label_map_a_picture(tmp_path: Path) -> None:
    np.save(tmp_path / "cup.npy", QUARTERS)
    np.save(tmp_path / "cat.npy", np.zeros_like(QUARTERS))
    assert int(segment(noise(8, 12), str(tmp_path), picture="cup.jpg").max()) == 3
    assert int(segment(noise(8, 12), str(tmp_path), picture="cat.jpg").max()) == 0
    with pytest.raises(XaiError, match="dog") as told:
        segment(noise(8, 12), str(tmp_path), picture="dog.jpg")
    refused(told)


@pytest.mark.parametrize("crop", ["center", "squash"])
def test_a_label_map_of_the_original_is_seen_as_the_network_sees_it(crop: str) -> None:
    """The labels, prepared as a picture without smoothing between pixels, are the labels that each pixel gets."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, (30, 50)).repeat(2, 0).repeat(2, 1)  # 60 x 100
    image = Image.of("labels", np.broadcast_to(labels.astype(np.uint8) * 60, (3, 60, 100)))
    ready = Preprocessing((24, 24), mean=(0.5,) * 3, std=(0.5,) * 3, resize=28, crop=crop, interpolation="nearest")
    prepared = ready(image)
    found = segment(noise(24, 24), labels, frame=prepared.frame, original=(60, 100))
    expected = torch.from_numpy(prepared.seen[..., 0] // 60).long()
    assert float((found == expected).double().mean()) > (0.8 if crop == "center" else 0.999)


def test_a_whole_frame_leaves_a_label_map_as_it_is() -> None:
    found = segment(noise(8, 12), QUARTERS, frame=Frame(0, 0, 1, 1), original=(8, 12))
    assert_close(found, torch.from_numpy(QUARTERS), rtol=0, atol=0)
    double = segment(noise(8, 12), QUARTERS.repeat(2, 0).repeat(2, 1), frame=Frame(0, 0, 2, 2), original=(16, 24))
    assert_close(double, torch.from_numpy(QUARTERS), rtol=0, atol=0)
    left = segment(noise(8, 6), QUARTERS, frame=Frame(0, 0, 1, 1), original=(8, 12))
    assert left.unique().tolist() == [0, 1]
    right = segment(noise(8, 6), QUARTERS + 4, frame=Frame(6, 0, 1, 1), original=(8, 12))
    assert_close(left, right, rtol=0, atol=0)


def bad_maps(folder: Path) -> dict[str, Any]:
    np.save(folder / "small.npy", QUARTERS[:4])
    np.save(folder / "deep.npy", np.zeros((8, 12, 3), dtype=int))
    np.save(folder / "one.npy", np.array(3))
    np.save(folder / "halves.npy", QUARTERS / 2)
    np.save(folder / "words.npy", QUARTERS.astype(str))
    np.savez(folder / "archive.npz", QUARTERS)
    (folder / "archive.npz").rename(folder / "archive.npy")
    (folder / "broken.npy").write_bytes(b"\x93NUMPY nothing")
    (folder / "empty.npy").write_bytes(b"")
    (folder / "broken.png").write_bytes(b"not a picture")
    Pil.fromarray(QUARTERS.astype(np.uint8)).save(folder / "jpeg.jpg")
    (folder / "jpeg.jpg").rename(folder / "jpeg.png")
    Pil.fromarray(QUARTERS.astype(np.uint8)).resize((24, 16)).save(folder / "large.png")
    (folder / "notes.txt").write_text("segments")
    files = ("small.npy", "deep.npy", "one.npy", "halves.npy", "words.npy", "archive.npy", "broken.npy", "empty.npy",
             "broken.png", "jpeg.png", "large.png", "notes.txt", "missing.npy")
    return {name: str(folder / name) for name in files} | {
        "an array": QUARTERS[:, :3], "fractions": QUARTERS / 3, "nothing": np.zeros((0, 0), dtype=int)}


def test_bad_label_maps_get_a_sentence(tmp_path: Path) -> None:
    for name, how in bad_maps(tmp_path).items():
        with pytest.raises(XaiError) as told:
            segment(noise(8, 12), how)
        said = refused(told)
        if isinstance(how, str):
            assert name.split(".")[0] in said, said
    with pytest.raises(XaiError, match="8 x 12 or 80 x 120 pixels.*got 4 x 12"):
        segment(noise(8, 12), str(tmp_path / "small.npy"), frame=Frame(0, 0, 10, 10), original=(80, 120))


class Trap:
    """What would leave a file behind if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_code_of_a_label_map_is_run(tmp_path: Path) -> None:
    np.save(tmp_path / "trap.npy", np.array([[Trap(tmp_path / "sprung")]], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("trap.npy", "pickle.npy"):
        with pytest.raises(XaiError) as told:
            segment(noise(1, 1), str(tmp_path / name))
        refused(told)
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_method_gets_near_names() -> None:
    with pytest.raises(XaiError, match=r"Did you mean quickshift\?") as told:
        segment(noise(8, 8), "quikshift")
    refused(told)
    with pytest.raises(XaiError, match="slic, quickshift, felzenszwalb, watershed, grid") as told:
        segment(noise(8, 8), "zzz")
    refused(told)
    with pytest.raises(XaiError, match="at least 2 pixels") as told:
        segment(noise(1, 8), "grid")
    refused(told)
    with pytest.raises(XaiError, match="at least 1") as told:
        segment(noise(8, 8), "grid", 0)
    refused(told)


# --- what is known of segments ---
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_mean_colours_are_means(channels: int) -> None:
    x = torch.rand(channels, 8, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(QUARTERS)
    found = mean_colours(x, labels)
    for s in range(4):
        for c in range(channels):
            mean = x[c][labels == s].double().mean().float()
            assert_close(found[c][labels == s], mean.expand(24), rtol=1e-6, atol=0)
    assert_close(mean_colours(found, labels), found)
    flat = torch.full((channels, 8, 12), 0.3)
    assert_close(mean_colours(flat, labels), flat, rtol=0, atol=0)  # nothing changes where a segment has one colour
    assert found.dtype == x.dtype


def loop_area(polygon: tuple[tuple[float, float], ...]) -> float:
    """Signed, positive where the inside is on the right hand (y runs down)."""
    x, y = np.array(polygon).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_outlines_go_around_exactly_the_mask(mask: np.ndarray) -> None:
    polygons = outlines(torch.from_numpy(mask))
    assert sum(loop_area(p) for p in polygons) == mask.sum()
    padded = np.pad(mask, 1).astype(int)
    edges = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    length = 0.0
    for polygon in polygons:
        steps = np.abs(np.roll(np.array(polygon), -1, 0) - np.array(polygon))
        assert ((steps == 0).sum(1) == 1).all()  # along the axes, and no corner twice
        assert (steps.argmax(1) != np.roll(steps.argmax(1), 1)).all()  # corners alone
        length += steps.sum()
    assert length == edges
    from scipy import ndimage

    around = [p for p in polygons if loop_area(p) > 0]
    assert len(around) == ndimage.label(mask)[1]


def test_the_outline_of_a_box_is_its_corners() -> None:
    mask = torch.zeros(6, 9, dtype=torch.bool)
    mask[2:5, 3:8] = True
    assert outlines(mask) == [((3.0, 2.0), (8.0, 2.0), (8.0, 5.0), (3.0, 5.0))]
    assert outlines(torch.zeros(3, 3, dtype=torch.bool)) == []


def test_lines_run_between_segments_alone() -> None:
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    changed: Tensor = torch.from_numpy(lined(pixels, torch.from_numpy(QUARTERS)).any(2))
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[3] = expected[:, 5] = True
    assert_close(changed, expected)
    assert not pixels.any()
