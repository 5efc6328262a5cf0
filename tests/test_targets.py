"""Targets: every form, the scalar that each picks, what it is called, and the sentence where it does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn
from torch.testing import assert_close

from xai.errors import XaiError
from xai.images import load_images
from xai.model import Model
from xai.subject import as_targets
from xai.targets import Bound, Target, find_class, parse_targets

LABELS = ("tabby cat", "Egyptian_cat", "hen-of-the-woods", "T-shirt", "x - y", "4x4 car", "lens cap")
LOGITS = torch.tensor([[0.0, 3.0, 1.0, -2.0, 2.0, -1.0, 0.5], [5.0, -1.0, 4.0, 0.0, 3.0, 1.0, 2.0]])


def bind(text: str, output: Tensor = LOGITS, **more: object) -> Bound:
    return Target(text).bind(output, labels=LABELS, **more)  # type: ignore[arg-type]


def picked(text: str, **more: object) -> list[int]:
    """The class of each picture, checked to be what the score reads."""
    bound = bind(text, **more)
    assert bound.classes is not None
    assert_close(bound(LOGITS), LOGITS[torch.arange(2), bound.classes], rtol=0, atol=0)
    assert bound.names == tuple(LABELS[c] for c in bound.classes.tolist())
    return bound.classes.tolist()


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("top1", [1, 0]), ("rank:1", [1, 0]), ("rank:2", [4, 2]), ("rank:7", [3, 1]),
        ("class:0", [0, 0]), ("class:6", [6, 6]), ("class:006", [6, 6]),
        ("tabby cat", [0, 0]), ("tabby_cat", [0, 0]), ("TABBY Cat", [0, 0]), (" tabby cat ", [0, 0]),
        ("egyptian cat", [1, 1]), ("EGYPTIAN_CAT", [1, 1]), ("hen-of-the-woods", [2, 2]), ("t-shirt", [3, 3]),
        ("x - y", [4, 4]), ("X - Y", [4, 4]), ("4x4 car", [5, 5]),
    ],
)  # fmt: skip
def test_a_form_of_target_picks_its_class(text: str, classes: list[int]) -> None:
    assert picked(text) == classes


def test_top1_follows_the_unperturbed_output_alone() -> None:
    bound = bind("top1")
    assert_close(bound(-LOGITS), torch.tensor([-3.0, -5.0]), rtol=0, atol=0)


@pytest.mark.parametrize("truth", [(6, 2), ("lens cap", "hen-of-the-woods"), ("Lens_Cap", 2)])
def test_label_is_the_true_class_by_number_or_name(truth: tuple[int | str, ...]) -> None:
    assert picked("label", truth=truth) == [6, 2]


@pytest.mark.parametrize("truth", [(), (None, None), (3, None)])
def test_label_without_labels_says_where_to_get_them(truth: tuple[int | None, ...]) -> None:
    with pytest.raises(XaiError, match=r"target label must be used with pictures whose labels are known; got .*Use"):
        bind("label", truth=truth)


@pytest.mark.parametrize(("truth", "said"), [(7, "from 0 to 6; got 7"), (-1, "from 0 to 6; got -1"),
                                             ("dog", "one of .* got 'dog'")])  # fmt: skip
def test_a_label_that_the_model_does_not_know_is_told(truth: int | str, said: str) -> None:
    with pytest.raises(XaiError, match=said):
        bind("label", truth=(truth, truth))


def test_top3_is_three_targets_one_a_rank() -> None:
    assert [t.text for t in parse_targets("top3")] == ["rank:1", "rank:2", "rank:3"]
    assert [picked(t.text) for t in parse_targets(" top3 ")] == [[1, 0], [4, 2], [2, 4]]
    assert parse_targets("top1") == [Target("top1")]
    assert len(parse_targets("top50")) == 50


def test_label_and_top1_give_one_map_where_they_agree() -> None:
    label, top = parse_targets("label+top1")
    assert (label.text, top.text, top.unless) == ("label", "top1", "label")
    assert label.bind(LOGITS, truth=(1, 3)).skip == ()
    assert top.bind(LOGITS, truth=(1, 3)).skip == (True, False)
    assert top.bind(LOGITS, truth=(0, 0)).skip == (False, True)


@pytest.mark.parametrize(
    ("text", "one", "other"),
    [
        ("tabby cat - lens cap", [0, 0], [6, 6]), ("class:3 - class:1", [3, 3], [1, 1]),
        ("top1 - rank:2", [1, 0], [4, 2]), ("  T-shirt  -  hen-of-the-woods  ", [3, 3], [2, 2]),
        ("x - y - tabby cat", [4, 4], [0, 0]), ("tabby cat - x - y", [0, 0], [4, 4]), ("x - y - x - y", [4, 4], [4, 4]),
        ("label - top1", [6, 2], [1, 0]),
    ],
)  # fmt: skip
def test_a_contrast_is_the_difference_of_two(text: str, one: list[int], other: list[int]) -> None:
    bound = bind(text, truth=(6, 2))
    assert bound.classes is not None
    assert bound.versus is not None
    assert (bound.classes.tolist(), bound.versus.tolist()) == (one, other)
    rows = torch.arange(2)
    assert_close(bound(LOGITS), LOGITS[rows, one] - LOGITS[rows, other], rtol=0, atol=0)
    assert bound.names == tuple(f"{LABELS[a]} - {LABELS[b]}" for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("text", ["top1 - rank:2 - rank:3", "tabby cat - lens cap - T-shirt", "x - y - x - y - top1"])
def test_a_contrast_of_three_is_refused(text: str) -> None:
    with pytest.raises(XaiError, match='a contrast must be of two sides, "a - b"; got '):
        bind(text)


@pytest.mark.parametrize("text", ["tabby cat-lens cap", "T-shirt- top1", "top1 -", "- top1", "tabby cat - "])
def test_a_minus_without_blanks_on_both_sides_makes_no_contrast(text: str) -> None:
    with pytest.raises(XaiError, match="the target must be one of top1"):
        bind(text)


def test_near_names_are_offered() -> None:
    with pytest.raises(XaiError, match=r"got 'taby cat'\. Did you mean tabby cat\?$"):
        bind("taby cat")
    with pytest.raises(XaiError, match=r"Did you mean Egyptian_cat"):
        bind("egiptian cat")
    with pytest.raises(XaiError, match=r"got 'zzz'\. `xai models info SPEC --json` lists the class names\.$"):
        bind("zzz")
    with pytest.raises(XaiError, match=r"got 'zzz'\. This model has no class names: use class:0 to class:6\.$"):
        Target("zzz").bind(LOGITS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class:7", "the class number must be from 0 to 6; got 7. The model has 7 classes."),
        ("class:-1", "the class number must be from 0 to 6; got -1."), ("class:", "the class number must be from 0 to"),
        ("class:cat", "the class number must be from 0 to 6; got cat."),
        ("rank:0", "the rank of a target must be from 1 to 7; got 0."), ("rank:8", "must be from 1 to 7; got 8."),
        ("rank:x", "the target must be one of top1"), ("top3 - top1", "the target must be one of top1"),
        ("pixel:1,2,3", "a pixel target must be used on a network that yields a picture or map; got an output of"),
        ("mask:0", "a mask target must be used on a network that yields a class map; got an output of shape (2, 7)"),
        ("embedding:a.png", "an embedding target must be embedding:PICTURE"),
    ],
)  # fmt: skip
def test_a_target_that_does_not_fit_is_told(text: str, said: str) -> None:
    with pytest.raises(XaiError, match=re.escape(said)):
        bind(text)


@pytest.mark.parametrize(("text", "said"), [("", "got nothing"), ("  ", "got nothing"), ("top0", "from 1 to 50; got 0"),
                                            ("top51", "from 1 to 50; got 51")])  # fmt: skip
def test_words_that_name_no_target_are_told(text: str, said: str) -> None:
    with pytest.raises(XaiError, match=said):
        parse_targets(text)


MAP = torch.arange(2 * 7 * 3 * 4, dtype=torch.float32).reshape(2, 7, 3, 4).sin()


def test_a_pixel_is_one_value_of_the_output() -> None:
    bound = bind("pixel:3,1,5", MAP)
    assert_close(bound(MAP), MAP[:, 5, 1, 3], rtol=0, atol=0)
    assert bound.names == ("pixel 3,1 of channel 5",) * 2
    assert bound.classes is None


@pytest.mark.parametrize("rest", ["4,0,0", "0,3,0", "0,0,7", "-1,0,0"])
def test_a_pixel_outside_is_told(rest: str) -> None:
    with pytest.raises(XaiError, match=f"the pixel target must be inside 4 x 3 with 7 channels; got {rest}"):
        bind(f"pixel:{rest}", MAP)


@pytest.mark.parametrize("rest", ["", "1", "1,2", "1,2,3,4", "a,b,c"])
def test_a_pixel_that_is_no_place_is_told(rest: str) -> None:
    with pytest.raises(XaiError, match=r"a pixel target must be pixel:X,Y,C in the output's pixels; got '"):
        bind(f"pixel:{rest}", MAP)


@pytest.mark.parametrize(
    ("text", "index"), [("mask:2", 2), ("mask:T-shirt", 3), ("mask:4x4 car", 5), ("mask:class:6", 6)]
)
def test_a_mask_is_the_sum_over_the_region_where_the_class_wins(text: str, index: int) -> None:
    bound = bind(text, MAP, kind="map")
    region = MAP.argmax(1) == index
    other = torch.randn(MAP.shape, generator=torch.Generator().manual_seed(0))
    for output in (MAP, other):  # the region stays that of the unperturbed output
        assert_close(bound(output), (output[:, index] * region).sum((1, 2)))
    assert bound.names == (f"the region of {LABELS[index]}",) * 2


@pytest.mark.parametrize("text", ["mask", "mask:", "top1"])
def test_the_largest_region_of_each_picture_is_taken_where_no_class_is_named(text: str) -> None:
    output = torch.zeros(2, 7, 3, 4)
    output[0, 2, :, :3] = 2.0
    output[0, 1, :, 3] = 9.0
    output[1, 6] = 1.0
    bound = bind(text, output, kind="map")
    assert bound.names == ("the region of hen-of-the-woods", "the region of lens cap")
    assert_close(bound(output), torch.tensor([18.0, 12.0]), rtol=0, atol=0)


def test_a_network_whose_output_has_places_wants_a_place() -> None:
    with pytest.raises(XaiError, match=r"must be pixel:X,Y,C or mask:CLASS; got 'top1'"):
        bind("top1", MAP, kind="image")
    with pytest.raises(XaiError, match=r"must be one of .*; got 'no such'"):
        bind("mask:no such", MAP, kind="map")


def test_an_embedding_is_the_cosine_to_a_reference_picture() -> None:
    asked: list[str] = []

    def embed(name: str) -> Tensor:
        asked.append(name)
        return LOGITS[:1] * 3

    bound = bind("embedding:b.png", LOGITS, kind="embedding", embed=embed)
    expected = LOGITS @ LOGITS[0] / (LOGITS.norm(dim=1) * LOGITS[0].norm())
    assert_close(bound(LOGITS), expected)
    assert_close(bound.take([0, 0])(LOGITS[[1, 1]]), expected[[1, 1]])
    assert (asked, bound.names) == (["b.png"], ("similarity to b.png",) * 2)
    with pytest.raises(XaiError, match="an embedding target must be embedding:PICTURE"):
        bind("embedding:", embed=embed)


def test_an_embedding_target_of_a_model_is_one_at_the_picture_itself() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Model(net, mean=[0.5], std=[0.5], size=32, head="embedding")
    batch = next(model.prepare(load_images("sample:coffee") + load_images("sample:rocket")))
    similarity = batch.bind(Target("embedding:sample:coffee"))(batch.output())
    assert_close(similarity[0], torch.tensor(1.0))
    assert similarity[1] < 1


def test_a_callable_is_taken_as_it_is() -> None:
    def entropy(output: Tensor) -> Tensor:
        return -(output.softmax(1) * output.log_softmax(1)).sum(1)

    (target,) = as_targets(entropy)
    bound = target.bind(LOGITS, labels=LABELS)
    assert (target.text, bound.names, bound.classes) == ("entropy", ("entropy", "entropy"), None)
    assert_close(bound(LOGITS), entropy(LOGITS), rtol=0, atol=0)
    assert_close(bound.take([1, 1, 0])(LOGITS[[1, 1, 0]]), entropy(LOGITS)[[1, 1, 0]])


@pytest.mark.parametrize(
    ("given_as", "texts"),
    [("top2", ["rank:1", "rank:2"]), (281, ["class:281"]), (Target("label"), ["label"]),
     ([Target("a"), Target("b")], ["a", "b"])],
)  # fmt: skip
def test_what_people_pass_for_a_target_becomes_targets(given_as: object, texts: list[str]) -> None:
    assert [t.text for t in as_targets(given_as)] == texts


def test_a_target_that_sees_the_places_of_its_own_picture_takes_them_along() -> None:
    bound = bind("mask:T-shirt", MAP, kind="map")
    rows = [1, 0, 1]
    again = bound.take(rows)
    assert again.names == tuple(bound.names[i] for i in rows)
    assert_close(again(MAP[rows]), bound(MAP)[rows], rtol=0, atol=0)
    assert_close(again.take([2])(MAP[[1]]), bound(MAP)[[1]], rtol=0, atol=0)


def test_a_class_beyond_the_given_names_is_called_by_its_number() -> None:
    bound = Target("class:5").bind(LOGITS, labels=("a", "b"))
    assert bound.names == ("class 5",) * 2
    assert find_class("c", ("a", "b", "c"), 2) is None


logits = arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 9)),
                       elements=st.floats(-100, 100, width=32)).map(torch.from_numpy)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(logits, st.data())
def test_the_score_of_any_class_is_the_plain_index(output: Tensor, data: st.DataObject) -> None:
    n, count = output.shape
    index = data.draw(st.integers(0, count - 1))
    assert_close(Target(f"class:{index}").bind(output)(output), output[:, index], rtol=0, atol=0)
    truth = data.draw(st.lists(st.integers(0, count - 1), min_size=n, max_size=n))
    assert_close(Target("label").bind(output, truth=truth)(output), output[torch.arange(n), truth], rtol=0, atol=0)
    rank = data.draw(st.integers(1, count))
    ranked = Target(f"rank:{rank}").bind(output)(output)
    assert_close(ranked, output.sort(1, descending=True).values[:, rank - 1], rtol=0, atol=0)


@settings(max_examples=60, deadline=None)
@given(logits, st.data())
def test_a_contrast_is_antisymmetric_and_nothing_against_itself(output: Tensor, data: st.DataObject) -> None:
    side = st.one_of(st.integers(0, output.shape[1] - 1).map("class:{}".format), st.just("top1"), st.just("rank:2"))
    a, b = data.draw(side), data.draw(side)
    score: Callable[[str], Tensor] = lambda text: Target(text).bind(output)(output)  # noqa: E731
    assert_close(score(f"{a} - {b}"), -score(f"{b} - {a}"), rtol=0, atol=0)
    assert_close(score(f"{a} - {a}"), torch.zeros(len(output)), rtol=0, atol=0)


@settings(max_examples=60, deadline=None)
@given(logits, st.data())
def test_taking_pictures_and_scoring_commute(output: Tensor, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(output) - 1), min_size=1, max_size=8))
    for text in ("top1", "rank:2", "class:1", "top1 - class:0", "rank:2 - top1"):
        bound = Target(text).bind(output)
        taken = bound.take(rows)
        assert_close(taken(output[rows]), bound(output)[rows], rtol=0, atol=0)
        assert taken.names == tuple(bound.names[i] for i in rows)


def test_a_name_is_taken_as_it_is_spelled_and_must_be_of_one_class() -> None:
    """ImageNet has a Cardigan (a dog) and a cardigan (knitwear)."""
    labels = ("Cardigan", "crane", "cardigan", "crane")
    assert find_class("Cardigan", labels, 4) == 0
    assert find_class("cardigan", labels, 4) == 2
    for text, both in (("CARDIGAN", "0, 2"), ("crane", "1, 3")):
        with pytest.raises(XaiError, match=f"classes {both} bear. Write class:"):
            find_class(text, labels, 4)


@pytest.mark.parametrize("value", [torch.sum, torch.relu, len], ids=["one for all", "all classes", "no tensor"])
def test_a_callable_gives_one_number_a_picture(value: Callable[[Tensor], Tensor]) -> None:
    bound = Target("mine", value).bind(torch.zeros(2, 5))
    with pytest.raises(XaiError, match="one number a picture"):
        bound(torch.zeros(2, 5))
