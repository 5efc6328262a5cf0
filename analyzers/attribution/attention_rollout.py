"""Attention rollout: which patches the read token can have looked at, through all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xai.analyzer import Maps, Passes, param
from xai.attention import Tokens, recorded, self_attention
from xai.attribution import Attribution
from xai.batch import Batch
from xai.model import Model
from xai.panels import Number, View
from xai.targets import Bound

HEADS = ("mean", "max", "min")


@dataclass(frozen=True)
class AttentionRollout(Attribution):
    """Attention rollout: where a vision transformer's attention comes from, for any class.

    A_l is the attention of layer l, its heads merged (mean; of max and min each row is divided by its sum), B_l =
    r I + (1 - r) A_l with r for the residual connection, R = B_L ... B_1. The map is R's row of the token that the head
    reads, on the patches: the class token's, or the mean row of the patches where these are pooled (asked once of the
    network, by a gradient). Class and register tokens are left out of the map. It mixes tokens as if nothing but
    attention stood between them, and it is the same map for every class: the check says so. View: relu.

    Reads     one model, images
    Yields    one map an image, at the patches' grid, not negative: shares of the attention, which with those of the
              other tokens add up to 1; the share of those others
    Raises    XaiError for networks without self-attention over all patches: convolutional ones, attention in windows
    Cost      one forward, for all targets
    Reference Abnar and Zuidema 2020, "Quantifying attention flow in transformers", arXiv:2005.00928, section 3 (r =
              0.5, the mean of the heads)
    """

    heads: str = param("mean", "how the heads of a layer become one: mean, max or min", choices=HEADS)
    residual: float = param(0.5, "share r of the residual connection in each layer, 0 to 1", low=0, high=1)

    needs = frozenset({"hooks", "images", "attention"})
    view: ClassVar[View] = "relu"
    shares: ClassVar[bool] = True

    def check(self, model: Model) -> None:
        """Raise XaiError where the model has no self-attention over all patches."""
        super().check(model)
        self_attention(model)

    def passes(self, model: Model) -> Passes:
        """One forward, as the common one does not keep its attention."""
        return Passes(forwards=1)

    def maps_for(self, batch: Batch, targets: Sequence[Bound], owners: Sequence[int] = ()) -> list[Maps]:
        """The same (n, h, w), at the grid of the patches, for every target."""
        tokens = self_attention(batch.model, batch.inputs)
        rows = torch.cat([self._row(tokens, recorded(batch, part, self._merged)) for part in tokens.parts(batch, 2)])
        values = tokens.on_grid(rows)
        title = "Share of the rollout on tokens that are no patches"
        panels = tuple(Number(key="share", title=title, picture=picture, value=share) for picture, share in
                       zip(batch.hashes, rows[:, : tokens.prefix].sum(1).tolist(), strict=True))
        return [Maps(values, panels=panels) for _ in targets]

    def _merged(self, found: Tensor) -> Tensor:
        """(n, heads, T, T) -> (n, T, T), whose rows add up to 1."""
        if self.heads == "mean":
            return found.mean(1)
        one = found.amax(1) if self.heads == "max" else found.amin(1)
        return one / one.sum(-1, keepdim=True).clamp_min(torch.finfo(one.dtype).tiny)

    def _row(self, tokens: Tokens, layers: Sequence[Tensor]) -> Tensor:
        """(n, T): the mean of R's rows of the tokens that are read, from the last layer down."""
        row = tokens.start(layers[0])
        for layer in reversed(layers):
            row = self.residual * row + (1 - self.residual) * (row[:, None] @ layer)[:, 0]
        return row
