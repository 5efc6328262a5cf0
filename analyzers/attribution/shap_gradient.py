"""SHAP's gradient explainer: expected gradients against a background of baselines, as the package computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from analyzers.attribution._backgrounds import drawn_from
from analyzers.attribution._gradients import REDUCTIONS, as_map
from analyzers.attribution._shap import quiet_shap
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.model import Model
from xai.targets import Bound

Ask = Callable[[Tensor], tuple[Tensor, Tensor]]  # (m, C, H, W) -> scores (m,) and their gradients (m, C, H, W)
BLOCK = 25  # samples of one call: shap keeps the inputs, differences, gradients and products of all of them


@dataclass(frozen=True)
class ShapGradient(Attribution):
    """SHAP gradient explainer: what each pixel adds against a background, as the shap package computes it.

    M = mean over k of sum over channels of (x - b_k) * dS/dx at a_k x + (1 - a_k) b_k, a_k ~ U[0, 1], b_k drawn from
    the background: expected gradients. It is expected to add up to S(x) - mean S(b). shap's GradientExplainer does
    this, in blocks of 25 samples with seeds of their own; it is shown a network of one output, the explained score,
    so that it does not repeat everything for each class. expected_gradients is the same without the package: quicker,
    with a standard error, and with a fresh baseline in every sample where this one draws from `background` of them.

    Reads     one model, images, and the baseline pictures if a source of them is named
    Yields    one signed map an image, at the input's size, in units of the score
    Raises    XaiError if no gradient reaches the input, the normalisation is not known, or a baseline of another size
    Cost      `samples` forwards and backwards
    Reference Erion et al. 2021, "Improving performance of deep learning models with axiomatic attribution priors and
              expected gradients", arXiv:1906.10670; GradientExplainer of the package shap 0.51
    """

    baselines: str = param("colours", "colours (flat, random), noise (random pixels), black, grey, white, zero, blur, "
                                      "or pictures: a folder or pattern")
    background: int = param(50, "baselines that are drawn for each picture", low=1)
    samples: int = param(200, "draws of a baseline and a place on the way, for each picture", low=1)
    reduce: str = param("sum", "what becomes of the channels: sum (signed), max_abs or sum_abs", choices=REDUCTIONS)

    needs = frozenset({"gradients", "images"})

    def passes(self, model: Model) -> Passes:
        """One forward and one backward a sample."""
        return Passes(forwards=self.samples, backwards=self.samples)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size."""
        found = [self._channels(batch, target, i) for i in range(len(batch))]
        return Maps(as_map(torch.stack(found), self.reduce, batch))

    def _channels(self, batch: Batch, target: Bound, i: int) -> Tensor:
        """(C, H, W) float64."""
        generator = batch.generator(i, self.name())
        one = drawn_from(batch, i, self.baselines, self.name())
        exact = torch.float64 if batch.inputs.dtype == torch.float64 else torch.float32  # what numpy has, too
        background = torch.stack([one(generator) for _ in range(self.background)]).to(batch.inputs.device, exact)
        x, net = batch.inputs[i : i + 1].to(exact), _Score(batch, target, i)
        total = torch.zeros(x.shape[1:], dtype=torch.float64)
        for first in range(0, self.samples, BLOCK):
            count, seed = min(BLOCK, self.samples - first), int(torch.randint(2**31, (), generator=generator))
            with quiet_shap() as shap:
                with torch.no_grad():
                    explainer = shap.GradientExplainer(net, background, batch_size=batch.chunk)
                with torch.enable_grad():
                    found = explainer.shap_values(x, nsamples=count, rseed=seed)
            total += count * torch.from_numpy(found[0, ..., 0])
        return total / self.samples


class _Score(nn.Module):
    """The explained score of picture i as a network of one output, (m, C, H, W) -> (m, 1).

    It holds no part of the model, so that what shap does to its network (eval, zero_grad) reaches nothing. Asked
    without gradients it gives zeros: shap does so once, with its whole background, to see how many outputs there are.
    """

    def __init__(self, batch: Batch, target: Bound, i: int) -> None:
        super().__init__()
        self._ask: Ask = lambda x: batch.input_gradient(x.to(batch.inputs.dtype), target.take([i] * len(x)))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if not torch.is_grad_enabled():
            return x.new_zeros(len(x), 1)
        score: Tensor = _WithGradient.apply(x, self._ask)  # type: ignore[no-untyped-call]  # torch's own gap
        return score


class _WithGradient(torch.autograd.Function):
    """A score whose gradient is found together with it, in the model's own way: counted, and told where it fails."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ask: Ask) -> Tensor:
        """(m, 1)."""
        score, gradient = ask(x)
        ctx.save_for_backward(gradient.to(x.dtype))
        return score[:, None].to(x.dtype)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        """(m, C, H, W)."""
        return above[:, :, None, None] * ctx.saved_tensors[0], None
