"""Kernel SHAP on superpixels: the Shapley value of each segment of a picture, from well-chosen coalitions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from analyzers.attribution._shap import ends
from xai.analyzer import Passes, param
from xai.errors import error
from xai.model import Model
from xai.panels import AnyPanel, Column, Number, Table, Text
from xai.perturbation import Found, Perturbation
from xai.sampler import VALUES, Sampler, shown
from xai.segments import shares
from xai.shapley import Shapley, coalitions, solve
from xai.superpixels import check_superpixels, drawn, finite, hidden_by, hidden_in_words, superpixels
from xai.surrogate import SIGMAS

ADVISED = 8  # coalitions a segment


@dataclass(frozen=True)
class ShapKernel(Perturbation):
    """SHAP on superpixels: each segment's fair share of the rise from nothing shown to the whole picture.

    phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)), v(S) the score of the picture where only
    the segments in S are shown: the Shapley value, so that equal segments get equal shares, one that changes nothing
    gets none, and all add up to v(all) - v(none). It is fitted to `samples` coalitions and their complements, as many
    of each size as of any other (paired leverage sampling, the players balanced within a size), with adding up as an
    exact condition. Where that is all 2^n - 2 of n segments (n up to 10 with 1024) phi is exact. 8 n to 20 n samples
    are advised; with fewer than 2 n the segments cannot be told apart. A share is that of a whole segment, however
    large, and relative to what hidden segments show.

    Reads     one model, images, and the label map if one is named
    Yields    one signed map an image, at the input's size: the share of its segment at each pixel, in units of the
              score, and its standard error; the score with nothing shown, how far the shares miss adding up, the
              largest shares with their intervals, and the segments on the picture
    Raises    XaiError if there are fewer than two segments or more than half the samples, the label map does not fit,
              or the baseline is flat and the normalisation not known
    Cost      `samples` + 1 forwards, fewer where that is more than there are coalitions; whatever the number of targets
    Reference Lundberg and Lee 2017, "A unified approach to interpreting model predictions", arXiv:1705.07874, theorem
              2; sampling: Musco and Witter 2025, "Provably accurate Shapley value estimation via leverage score
              sampling", arXiv:2410.01917
    """

    segmentation: str = param("slic", "slic, quickshift, felzenszwalb, watershed, grid, or a label map: a file, or a "
                                      "folder with one for each picture")
    segments: int = param(64, "about how many segments (quickshift has its own number)", low=4)
    smooth: float = param(0.0, "Gaussian in pixels before the segmentation, for speckled pictures", low=0)
    samples: int = param(1024, "coalitions of segments, at most; 8 to 20 for each segment are advised", low=16)
    baseline: str = param("mean", "what is seen in place of a segment: mean (its mean colour), zero (the mean colour "
                                  "of all pictures), black, grey, white, a level, or blur")
    value: str = param("logit", "the score of a class: logit, probability or log_odds", choices=VALUES)
    top: int = param(5, "how many segments the table names: those of the largest absolute shares", low=1)

    upper: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_superpixels(self.segmentation, self.baseline, self.name())

    def passes(self, model: Model) -> Passes:
        """One forward a coalition and one with nothing shown; the whole picture is known."""
        return Passes(forwards=self.samples - self.samples % 2 + 1)

    def picture(self, sampler: Sampler) -> list[Found]:
        """(H, W) at the input's size for each target."""
        labels = superpixels(sampler, self.segmentation, self.segments, self.smooth)
        fill = hidden_by(sampler, labels, self.baseline, self.name())
        z, weights = self._coalitions(sampler, int(labels.max()) + 1)
        asked = torch.cat([torch.zeros(1, z.shape[1], dtype=z.dtype), z])
        scores = torch.cat([answer.scores for answer in sampler.ask([asked], shown(sampler.x, fill, labels))])
        found = solve(z, weights, scores[1:], scores[0], sampler.here)
        return [Found(found.phi[:, t][labels], found.error[:, t][labels],
                      self._panels(sampler, labels, found, t, float(scores[0, t]), len(z)))
                for t in range(len(sampler.names))]

    def _coalitions(self, sampler: Sampler, n: int) -> tuple[Tensor, Tensor]:
        if n < 2:
            raise error("the number of segments", "at least 2", n, "Take another segmentation, or ask for more of them")
        if _all(n) <= self.samples:
            return coalitions(n, self.samples)
        if 2 * n > self.samples:
            raise error(f"{self.name()}.samples", f"at least {2 * n} for the {n} segments of the picture", self.samples,
                        f"Take {ADVISED * n} or more, or fewer segments")
        return coalitions(n, self.samples, sampler.generator(self.name()))

    def _panels(self, sampler: Sampler, labels: Tensor, found: Shapley, t: int, none: float,
                asked: int) -> tuple[AnyPanel, ...]:
        here, n = sampler.picture, len(found.phi)
        phi, spread = found.phi[:, t], found.error[:, t]
        top = phi.abs().argsort(descending=True, stable=True)[: self.top].tolist()
        rows = tuple((s, *(finite(v) for v in (float(phi[s]), *_interval(float(phi[s]), float(spread[s])))),
                      float(shares(labels)[s])) for s in top)
        columns = tuple(Column(name, sampler.unit) for name in ("share", "low", "high"))
        said = f"{n} segments ({self.segmentation}); outlined: the {len(top)} of the largest shares."
        return (
            self._told(sampler, found, t, asked),
            Number(key="coalitions", title="Coalitions", picture=here, value=asked, note=_of_how_many(n, asked)),
            *ends(sampler, t, none, float(phi.sum())),
            Table(key="segments", title=f"The {len(top)} segments of the largest shares", picture=here, rows=rows,
                  columns=(Column("segment"), *columns, Column("part of the picture", "probability"))),
            drawn(sampler, labels, {s: float(phi[s]) for s in top}, said),
        )

    def _told(self, sampler: Sampler, found: Shapley, t: int, asked: int) -> Text:
        """How far the shares can be trusted, in words."""
        n, tone = len(found.phi), "plain"
        size, error_ = float(found.phi[:, t].square().sum()), float(found.error[:, t].square().sum())
        if not math.isfinite(size):
            tone, said = "warning", (f"The {sampler.unit} is not a finite number for every coalition: there are no "
                                     "shares.")
        elif size == 0 and error_ in (0, math.inf):
            tone, said = "warning", (f"The {sampler.unit} does not depend on which segments are shown: every share is "
                                     "zero, and there is nothing to explain.")
        elif asked == _all(n):
            said = f"All {asked} coalitions of the {n} segments were asked: the shares are exact."
        elif found.rank < found.full:
            tone = "warning"
            said = (f"The {asked} coalitions do not tell all {n} segments apart: of the shares that fit, those nearest "
                    f"to equal ones are shown. Take {ADVISED * n} samples or more.")
        else:
            off = f", about {math.sqrt(error_ / size):.0%} of their size" if 0 < error_ < math.inf and size > 0 else ""
            said = f"The shares are estimates from {asked} coalitions; each has its standard error{off}."
            if asked < ADVISED * n - 1:
                tone, said = "warning", f"{said} For {n} segments {ADVISED * n} samples or more are advised."
        return Text(key="fit", title="What the shares say", picture=sampler.picture, text=said,
                    tone="warning" if tone == "warning" else "plain",
                    note=f"A hidden segment shows {hidden_in_words(self.baseline)}.")


def _all(n: int) -> int:
    """How many proper coalitions n segments have."""
    return (1 << n) - 2


def _of_how_many(n: int, asked: int) -> str:
    """In words, what share of the coalitions that is."""
    if asked == _all(n):
        return f"These are all that {n} segments have, beside none and all of them: nothing is left to chance."
    return f"Of 2^{n} - 2 that {n} segments have: {asked / n:.1f} for each segment, half are complements."


def _interval(value: float, spread: float) -> tuple[float, float]:
    return value - SIGMAS * spread, value + SIGMAS * spread
