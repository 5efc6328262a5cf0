"""LIME: a weighted linear model of which segments of a picture are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from xai.analyzer import Passes, param
from xai.local_fit import APART, Local, explain_segments, forwards
from xai.model import Model
from xai.panels import AnyPanel, Column, Number, Picture, Table, Text
from xai.perturbation import Found, Perturbation
from xai.sampler import VALUES, Sampler
from xai.segments import shares
from xai.superpixels import check_superpixels, drawn, finite, hidden_by, hidden_in_words, superpixels
from xai.surrogate import SIGMAS

LOW = 0.5  # an R2 below this is called low
SURE = 0.95  # of the bootstrap's draws
INTERVALS = ("95 %: low and high by standard errors that allow for what is not linear; the bootstrap's are the middle "
             "of its draws, too narrow where masks are few.")


@dataclass(frozen=True)
class LIME(Perturbation):
    """LIME: what each segment of the picture adds to the score, in the linear model that fits best around the picture.

    min over b0, b of sum_i w_i (y_i - b0 - z_i b)^2 + alpha |b|^2, y_i the score of the picture where mask z_i hides
    segments: c + M (x - c), c the baseline, M = z_i spread over the pixels of the segments; w_i = exp(-d_i^2 / (2 s^2))
    with d_i = 1 - sqrt(share of the segments that is shown), s = kernel_width. Segments are shown with probability 1/2,
    the first mask shows all; paired: each mask comes with what it hides, which is more exact for the same number of
    masks. All is solved in closed form. Given the same segments, masks and hidden picture the weights are those of the
    lime package (which cuts mean colours to whole numbers). A narrow interval says that b is well known; R2 says
    whether b describes the model: two different facts. A weight is that of a whole segment, however large.

    Reads     one model, images (of more than three channels the first three are cut into segments), and the label map
              if one is named
    Yields    one signed map an image, at the input's size: the weight of its segment at each pixel, in units of the
              score, and its standard error; R2 of the fit within and out of sample, the effective number of masks, how
              sure the top segments are, and the segments on the picture
    Raises    XaiError if the segments are fewer than two or as many as the (pairs of) masks, the label map does not
              fit, or the baseline is flat and the normalisation not known
    Cost      samples - 1 forwards where paired, else `samples`, whatever the number of targets; with `settle` at most
    Reference Ribeiro, Singh, Guestrin 2016, "'Why Should I Trust You?': Explaining the Predictions of Any Classifier",
              arXiv:1602.04938, eq. 1 and 2; for images as in the lime package, version 0.2.0.1
    """

    segmentation: str = param("slic", "slic, quickshift (lime's own), felzenszwalb, watershed, grid, or a label map: a "
                                      "file, or a folder with one for each picture")
    segments: int = param(64, "about how many segments (quickshift has its own number)", low=4)
    smooth: float = param(0.0, "Gaussian in pixels before the segmentation, for speckled pictures", low=0)
    samples: int = param(1000, "masks, with the one that shows all", low=16)
    paired: bool = param(True, "each mask comes with what it hides")
    settle: bool = param(False, "stop after 256, 512, ... masks once the top segments are settled")
    kernel_width: float = param(0.25, "s of the weights, in cosine distance", low=0.01)
    alpha: float = param(1.0, "penalty of the ridge, on the sum of squares", low=0)
    baseline: str = param("mean", "what is seen in place of a segment: mean (its mean colour), zero (the mean colour "
                                  "of all pictures), black, grey, white, a level, or blur")
    value: str = param("logit", "the score of a class: logit, probability or log_odds", choices=VALUES)
    top: int = param(5, "how many segments are looked at: those of the largest absolute weights", low=1)
    bootstrap: int = param(200, "draws of the bootstrap that asks how sure the top segments are; 0 = none", low=0)

    upper: ClassVar[bool] = True  # only with `settle`

    def __post_init__(self) -> None:
        super().__post_init__()
        check_superpixels(self.segmentation, self.baseline, self.name())

    def passes(self, model: Model) -> Passes:
        """One forward a mask; the picture itself is known."""
        return Passes(forwards=forwards(self.samples, self.paired))

    def picture(self, sampler: Sampler) -> list[Found]:
        """(H, W) at the input's size for each target."""
        labels = superpixels(sampler, self.segmentation, self.segments, self.smooth)
        fill = hidden_by(sampler, labels, self.baseline, self.name())
        found = explain_segments(sampler, labels, fill, self.name(), samples=self.samples, paired=self.paired,
                                 width=self.kernel_width, alpha=self.alpha, draws=self.bootstrap,
                                 settle=self.top if self.settle else 0)
        return [Found(one.fit.weights[labels], one.fit.error[labels], self._panels(sampler, labels, one))
                for one in found]

    def _panels(self, sampler: Sampler, labels: Tensor, found: Local) -> tuple[AnyPanel, ...]:
        here, fit, count = sampler.picture, found.fit, min(self.top, int(labels.max()) + 1)
        kept = self._kept(found, count)
        asked = (f"From {fit.masks} masks of {len(fit.weights)} segments. The {sampler.unit} is {found.all:.4g} with "
                 f"all segments shown and {found.none:.4g} with none; a hidden one is replaced by "
                 f"{hidden_in_words(self.baseline)}.")
        weights = (f"What {fit.masks} masks weigh by the kernel of width {self.kernel_width:g}: as many masks of equal "
                   "weight would tell as much. Where it is near their number, the fit is hardly a local one.")
        panels: list[AnyPanel] = [
            Text(key="fit", title="What the fit says", picture=here, text=self._said(sampler.unit, found),
                 tone="warning" if self._weak(found) else "plain", note=asked),
            Number(key="r2", title="R2 of the local fit, out of sample", picture=here, value=fit.r2_out,
                   note="Each draw of masks is told by the fit to all the others. 1: the weights add up to the score."),
            Number(key="r2_in", title="R2 of the local fit, in sample", picture=here, value=fit.r2,
                   note="As the lime package gives it."),
            Number(key="effective", title="Effective number of masks", picture=here, value=fit.effective, unit="masks",
                   note=weights)]
        if kept is not None:
            said = f"The share of {self.bootstrap} draws of the bootstrap in which these {count} segments are on top."
            panels.append(Number(key="stability", title=f"Same top {count}", picture=here, value=finite(kept[1]),
                                 unit="of draws", note=said))
        table = self._table(sampler.unit, labels, found, count)
        return (*panels, Table(key="segments", title=f"The {count} segments of the largest weights", picture=here,
                               columns=table[0], rows=table[1], note=INTERVALS),
                self._drawn(sampler, labels, found, count))

    def _kept(self, found: Local, count: int) -> tuple[Tensor, float] | None:
        """What the bootstrap says of the top segments; None where there are no others, or no draws."""
        return found.held(count) if count < len(found.fit.weights) else None

    def _settled(self, found: Local, count: int) -> list[bool]:
        """Of each top segment: its interval excludes zero, and it is sure to be on top."""
        fit, kept = found.fit, self._kept(found, count)
        chosen = fit.top(count)
        sure = fit.apart(count) > APART if kept is None else kept[0][chosen] >= SURE
        clear = fit.weights[chosen].abs() > SIGMAS * fit.error[chosen]
        return [bool(one) for one in sure & clear]

    def _weak(self, found: Local) -> bool:
        return found.fit.r2_out is None or found.fit.r2_out < LOW

    def _said(self, unit: str, found: Local) -> str:
        fit, count = found.fit, min(self.top, len(found.fit.weights))
        if fit.constant:
            return (f"The {unit} does not depend on which segments are shown: every weight is zero, and there is "
                    "nothing to explain.")
        if fit.r2_out is None:
            return f"The {unit} is not a finite number for every mask, or the masks tell nothing: there is no fit."
        told = (f"A sum of the weights of the segments that are shown explains {max(fit.r2_out, 0):.0%} of how "
                f"the {unit} changes as segments are hidden.")
        if self._weak(found) and fit.r2 is not None and fit.r2 >= LOW:
            told += f" It explains {fit.r2:.0%} for the masks that it was fitted to: they are too few. Take more."
        elif self._weak(found):
            told += (" Most of it is what segments do together: the weights do not describe the model here, however "
                     "narrow their intervals. " + ("" if unit != "probability" else "Logits add up better. ")
                     + "Try other segments.")
        settled = self._settled(found, count)
        if count == len(fit.weights):
            return f"{told} The intervals of {sum(settled)} of all {count} weights exclude zero."
        if all(settled):
            return f"{told} The {count} segments of the largest weights are settled: other masks would name the same."
        return (f"{told} Of the {count} segments of the largest weights {sum(settled)} are settled; for the others "
                "take more masks.")

    def _table(self, unit: str, labels: Tensor, found: Local, count: int
               ) -> tuple[tuple[Column, ...], tuple[tuple[int | float | bool | None, ...], ...]]:
        fit, kept, share = found.fit, self._kept(found, count), shares(labels)
        spread = found.interval()
        columns = [Column("id"), Column("weight", unit), Column("low", unit), Column("high", unit),
                   *([Column("bootstrap low", unit), Column("bootstrap high", unit)] if spread is not None else []),
                   Column("area", "%"), Column("settled")]
        rows: list[tuple[int | float | bool | None, ...]] = []
        for s, sure in zip(fit.top(count).tolist(), self._settled(found, count), strict=True):
            weight, width = float(fit.weights[s]), SIGMAS * float(fit.error[s])
            ends = [float(end[s]) for end in spread] if spread is not None else []
            row = [s, *(finite(v) for v in (weight, weight - width, weight + width, *ends)), 100 * float(share[s]),
                   sure]
            rows.append((*row, *([finite(float(kept[0][s]))] if kept is not None else [])))
        more = [Column(f"top {count}", "probability")] if kept is not None else []
        return (*columns, *more), tuple(rows)

    def _drawn(self, sampler: Sampler, labels: Tensor, found: Local, count: int) -> Picture:
        weights = found.fit.weights
        said = f"{len(weights)} segments ({self.segmentation}); outlined: the {count} of the largest weights."
        return drawn(sampler, labels, {s: float(weights[s]) for s in found.fit.top(count).tolist()}, said)
