"""Agreement with Quantus on randomisation and robustness, given the same weights, the same rival and the same noise.

Where conventions differ: Quantus draws weights from each layer's initialiser and leaves class tokens and positions
alone; it resets a batch norm's moments to 0 and 1; its cascade takes layers in the order in which they were defined.
Its random class and its noise come from numpy's global generator. It compares whole maps of floats, a record float16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from analyzers.attribution.input_x_gradient import InputXGradient
from analyzers.attribution.saliency import Saliency
from analyzers.evaluation.class_sensitivity import ClassSensitivity
from analyzers.evaluation.max_sensitivity import MaxSensitivity
from analyzers.evaluation.model_randomization import ModelRandomization
from tests.gradient_nets import batch_of, made, pictures
from xai.batch import Batch
from xai.metric import case_of
from xai.randomized import randomized, stages
from xai.targets import Target

quantus = pytest.importorskip("quantus", reason="quantus is not installed")
SIZE = 12


def network(classes: int) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, classes)).eval()


def gradient(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
    """(n, 1, H, W): the largest absolute gradient of the channels, or the sum of input x gradient."""
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float32).requires_grad_()
    score = model(x).gather(1, torch.as_tensor(np.asarray(targets))[:, None]).sum()
    return torch.autograd.grad(score, x)[0].abs().amax(1, keepdim=True).numpy()


def product(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float32).requires_grad_()
    score = model(x).gather(1, torch.as_tensor(np.asarray(targets))[:, None]).sum()
    return (torch.autograd.grad(score, x)[0] * x).sum(1, keepdim=True).detach().numpy()


def ready(classes: int) -> tuple[Batch, nn.Module, np.ndarray, np.ndarray]:
    net = network(classes)
    batch = batch_of(made(net, size=SIZE, precision="float32"), pictures(3, SIZE))
    return batch, net, batch.inputs.numpy(), batch.output().argmax(1).numpy()


def theirs(metric: Any, net: nn.Module, x: np.ndarray, y: np.ndarray, explain: Any) -> Any:
    return metric(model=net, x_batch=x, y_batch=y, a_batch=explain(net, x, y), explain_func=explain,
                  channel_first=True, softmax=False, device="cpu")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("measure", ["spearman", "pearson"])
def test_randomisation_agrees_given_the_same_weights(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantus.functions import similarity_func
    from quantus.helpers.model.pytorch_model import PyTorchModel

    batch, net, x, y = ready(5)
    names = stages(batch.model)

    def ours(self: Any, order: str = "top_down", seed: int = 0) -> Iterator[tuple[str, nn.Module | None]]:
        for k, name in enumerate(names):
            yield name, randomized(batch.model, names[: k + 1], batch.seed)._module

    monkeypatch.setattr(PyTorchModel, "get_random_layer_generator", ours)
    metric = quantus.MPRT(similarity_func=getattr(similarity_func, f"correlation_{measure}"), layer_order="top_down",
                          abs=True, normalise=False, disable_warnings=True)
    told = theirs(metric, net, x, y, gradient)
    expected = torch.tensor([told[name] for name in names], dtype=torch.float64).T
    found = ModelRandomization(measure=measure, values="absolute").score(
        case_of(Saliency(), batch, batch.bind(Target("top1"))))
    assert_close(found.traces["likeness"], expected, rtol=0, atol=2e-3)
    assert_close(torch.tensor(told["original"]).double(), torch.ones(3).double(), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_class_sensitivity_agrees_where_there_is_one_other_class() -> None:
    from quantus.functions.similarity_func import correlation_spearman

    batch, net, x, y = ready(2)
    metric = quantus.RandomLogit(similarity_func=correlation_spearman, num_classes=2, abs=False, normalise=False,
                                 disable_warnings=True)
    expected = torch.as_tensor(np.asarray(theirs(metric, net, x, y, gradient))).double()
    found = ClassSensitivity().score(case_of(Saliency(), batch, batch.bind(Target("top1")))).values
    for values in found.values():
        assert_close(values, expected, rtol=0, atol=2e-3)


@pytest.mark.filterwarnings("ignore")
def test_max_sensitivity_agrees_given_the_same_noise() -> None:
    batch, net, x, y = ready(5)
    metric = MaxSensitivity(samples=6)
    draws = [batch.generator(i, "max_sensitivity") for i in range(3)]
    noise = iter([torch.stack([0.2 * (2 * torch.rand(x.shape[1:], generator=g) - 1) for g in draws])
                  for _ in range(6)])

    def same(arr: np.ndarray, **_: Any) -> np.ndarray:
        e: Tensor = next(noise)
        return arr + e.numpy().reshape(arr.shape)

    other = quantus.MaxSensitivity(nr_samples=6, perturb_func=same, abs=False, normalise=False, disable_warnings=True)
    expected = torch.as_tensor(np.asarray(theirs(other, net, x, y, product))).double()
    found = metric.score(case_of(InputXGradient(), batch, batch.bind(Target("top1")))).values["max"]
    assert_close(found, expected, rtol=1e-3, atol=1e-4)
