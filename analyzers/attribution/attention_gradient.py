"""Attention relevance: the attention of all layers, weighted by the gradient of the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xai.analyzer import Maps, Passes
from xai.attention import Tokens, self_attention, with_gradients
from xai.attribution import Attribution
from xai.batch import Batch
from xai.model import Model
from xai.panels import View
from xai.targets import Bound


@dataclass(frozen=True)
class AttentionGradient(Attribution):
    """Attention relevance: which patches a vision transformer's attention took for a class.

    A_l is the attention of layer l, G_l = dS/dA_l, C_l = mean over heads of (G_l o A_l)+; R starts as I and becomes
    R + C_l R from the first layer to the last. The map is the row of R - I of the token that the head reads, on the
    patches: the class token's, or the mean row of the patches where these are pooled (asked once of the network, by a
    gradient). Class and register tokens are left out of the map. Unlike attention_rollout it tells classes apart. View:
    relu.

    Reads     one model, images
    Yields    one map an image, at the patches' grid, not negative, in units of the score
    Raises    XaiError for networks without self-attention over all patches (convolutional ones, attention in windows),
              or where no gradient reaches it
    Cost      one forward and one backward
    Reference Chefer, Gur, Wolf 2021, "Generic attention-model explainability for interpreting bi-modal and
              encoder-decoder transformers", arXiv:2103.15679, section 3 (self-attention alone)
    """

    needs = frozenset({"gradients", "hooks", "images", "attention"})
    view: ClassVar[View] = "relu"

    def check(self, model: Model) -> None:
        """Raise XaiError where the model has no self-attention over all patches."""
        super().check(model)
        self_attention(model)

    def passes(self, model: Model) -> Passes:
        """One forward, as the common one does not keep its attention, and one backward."""
        return Passes(forwards=1, backwards=1)

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, h, w), at the grid of the patches."""
        tokens = self_attention(batch.model, batch.inputs)
        rows = [_row(tokens, with_gradients(batch, part, target.take(range(len(batch))[part])))
                for part in tokens.parts(batch, 4)]
        return Maps(tokens.on_grid(torch.cat(rows)))


def _row(tokens: Tokens, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """(n, T): the mean of (R - I)'s rows of the tokens that are read, from the last layer down."""
    start = row = tokens.start(layers[0][0])
    for found, slope in reversed(layers):
        row = row + (row[:, None] @ (slope * found).clamp_min(0).mean(1))[:, 0]
    return row - start
