"""EigenCAM: the direction in which a layer's activations vary most, whatever the class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from analyzers.attribution._cam import full
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.model import Model
from xai.panels import Number, View
from xai.targets import Bound


@dataclass(frozen=True)
class EigenCAM(Attribution):
    """EigenCAM: what stands out in a layer, without asking for a class.

    L = M v, M the layer's activations as a (places x channels) matrix with each channel's mean taken off, v its first
    right singular vector. The sign of v is arbitrary: it is chosen so that the map's largest absolute value is
    positive. The same map for every class. View: relu.

    Reads     one model, images
    Yields    one signed map an image, at the layer's size, in units of the activations; the share of their variance
              that it shows
    Raises    XaiError if the layer has no spatial output
    Cost      one forward, no backward; the eigenvectors of a matrix of min(places, channels) rows
    Reference Muhammad and Yeasin 2020, "Eigen-CAM", arXiv:2008.00299, section III (which does not centre); centred as
              in pytorch-grad-cam; the sign as in Chung and Ying 2025, Applied Sciences 15(13), 7562, eq. 13
    """

    layer: str = param("auto", "layer to look at; auto = the last spatial one that the target's gradient reaches")

    needs = frozenset({"hooks", "images"})
    view: ClassVar[View] = "relu"

    def passes(self, model: Model) -> Passes:
        """Nothing beyond the common forward."""
        return Passes()

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, h, w) at the layer's size."""
        activations = full(batch.activations(self.layer))
        values, share = principal(activations.flatten(2))
        title = "Share of the layer's variance that the map shows"
        panels = tuple(Number(key="share", title=title, picture=picture, value=s)
                       for picture, s in zip(batch.hashes, share.tolist(), strict=True))
        return Maps(values.reshape(len(values), *activations.shape[2:]), panels=panels)


def principal(activations: Tensor) -> tuple[Tensor, Tensor]:
    """(n, K, places) -> the projection on the first principal direction (n, places) and its share of the variance (n,).

    By the eigenvectors of the smaller of the two Gram matrices, in float64 where the device has it: as exact for the
    first direction as a singular value decomposition, and much cheaper. A picture with a value that is not finite gets
    a map of NaN.
    """
    finite = torch.isfinite(activations).all(2).all(1)
    exact = activations if activations.device.type == "mps" else activations.double()
    matrix = torch.where(finite[:, None, None], exact, 0)
    matrix = matrix - matrix.mean(2, keepdim=True)
    by_place = matrix.shape[2] <= matrix.shape[1]
    gram = matrix.mT @ matrix if by_place else matrix @ matrix.mT
    found = torch.linalg.eigh(gram)
    largest, vector = found.eigenvalues[:, -1].clamp_min(0), found.eigenvectors[:, :, -1]
    if by_place:
        line = vector * largest.sqrt()[:, None]
    else:
        line = (vector[:, None] @ matrix)[:, 0]
    peak = line.gather(1, line.abs().argmax(1, keepdim=True))
    line = torch.where(peak < 0, -line, line)
    variance = gram.diagonal(dim1=1, dim2=2).sum(1)
    share = torch.where(variance > 0, largest / torch.where(variance > 0, variance, 1), 0)
    return torch.where(finite[:, None], line, torch.nan).to(activations.dtype), share
