"""The guidance example: which layer follows which, a loss that is 0 for a copy, a guide that never learns."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.testing import assert_close

from xai.similarity import gram, measures, similarity
from xai.zoo.nets.photo20 import photo20


@pytest.fixture(scope="module")
def guidance() -> Iterator[ModuleType]:
    """The example as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "examples"))
        yield importlib.import_module("guidance")
        for name in ("guidance", "train_photo20"):
            sys.modules.pop(name, None)


def test_the_mapping_is_even(guidance: ModuleType) -> None:
    for guide in range(2, 60):
        for target in range(2, 40):
            pairs = guidance.mapping(guide, target)
            places = [t for _, t in pairs]
            assert [i for i, _ in pairs] == list(range(guide))
            assert places[0] == 0
            assert places[-1] == target - 1
            assert places == sorted(places)
            assert (len(set(places)) == guide) == (guide <= target)
    assert guidance.mapping(1, 7) == [(0, 6)]


def test_a_copy_of_the_guide_has_no_loss_and_only_the_target_a_gradient(guidance: ModuleType) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 32, 32)
    target, guide = guidance.Plain(4, depth=6), guidance.Plain(4, depth=6)
    features, theirs = target.outputs(x)[1], guide.outputs(x)[1]
    own = torch.stack([gram(one.detach())[0] for one in features])
    assert_close(guidance.likeness(features, own), torch.ones(6, dtype=torch.float64))
    wanted = torch.stack([gram(one.detach())[0] for one in theirs])
    found = guidance.likeness(features, wanted)
    linear = measures()["linear"]
    for i, (one, two) in enumerate(zip(features, theirs, strict=True)):
        assert_close(found[i], similarity(one, two, linear), atol=1e-6, rtol=0)
    torch.autograd.backward((1 - found).sum())
    assert all(layer.weight.grad.abs().sum() > 0 for layer in target.layers)
    assert all(parameter.grad is None for parameter in guide.parameters())


def test_a_minibatch_of_the_whole_gram_matrix_is_the_minibatchs_own(guidance: ModuleType) -> None:
    """Centred over all pictures or over these few: U-centring forgets the difference."""
    torch.manual_seed(0)
    net, x = photo20(20).eval(), torch.randn(30, 3, 32, 32)
    whole = guidance.guide_grams(net, x)
    assert whole.shape == (11, 30, 30)
    index = torch.tensor([3, 8, 1, 25, 17, 4, 29, 11])
    few = guidance.guide_grams(net, x[index])
    features = [torch.randn(8, 50) for _ in range(11)]
    assert_close(guidance.likeness(features, whole[:, index][:, :, index]), guidance.likeness(features, few),
                 atol=1e-3, rtol=0)


def test_a_step_of_guidance_raises_the_likeness(guidance: ModuleType) -> None:
    photos = guidance.drawn(per_class=3)
    every = torch.arange(len(photos.labels))
    data = guidance.Data(guidance.ready(photos, every), photos.labels, guidance.ready(photos, every), photos.labels)
    torch.manual_seed(0)
    grams = guidance.guide_grams(photo20(20).eval(), guidance.guide_inputs(photos, every))
    recipe = guidance.Recipe(batch=20, steps=6, seeds=(0,), checkpoints=2)
    guides, probe = {guidance.ARMS[1]: grams}, grams[:, : guidance.PROBE, : guidance.PROBE]
    alone, guided = (guidance.run(data, arm, 0, guides, probe, recipe) for arm in guidance.ARMS[:2])
    again = guidance.run(data, guidance.ARMS[1], 0, guides, probe, recipe)
    assert again.curve == guided.curve
    assert guided.curve[-1][3] > alone.curve[-1][3] + 0.02
    assert [row[0] for row in guided.curve] == [3, 6]
