"""Occlusion: what the score loses where a patch hides the picture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from xai.analyzer import Passes, param
from xai.baselines import check_baseline
from xai.errors import OutOfMemory, error
from xai.model import Model
from xai.perturbation import Found, Perturbation
from xai.reach import Reach
from xai.sampler import VALUES, Sampler

SHARE = 7  # the window is the short side over this, unless it is given: 32 pixels of 224
WORTH = 1.2  # the multiply-adds of a forward over those near a patch from which only the latter are done


@dataclass(frozen=True)
class Occlusion(Perturbation):
    """Occlusion: how much of the score is lost where a patch hides the picture.

    M(p) = mean, over the patches that cover pixel p, of S(x) - S(x with the patch as in b). Patches slide over the
    picture by the stride; the last of a row or column is moved back to the border, so that each pixel is covered. On a
    CPU, layers are computed anew only near the patch where the network's steps allow it: the same numbers up to
    rounding.

    Reads     one model, images
    Yields    one signed map an image, at the input's size, in units of the score
    Raises    XaiError if the window is larger than the picture or the stride larger than the window, or the baseline is
              flat and the normalisation not known
    Cost      a forward for each place of the patch and one for the picture, whatever the number of targets; where
              layers are computed only near the patch, each takes a part of a forward's time
    Reference Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901,
              section 4.2; local recomputation: Nakandala, Kumar, Papakonstantinou 2019, "Incremental and Approximate
              Inference for Faster Occlusion-based Deep CNN Explanations", SIGMOD
    """

    window: int = param(0, "side of the patch in the input's pixels; 0 = a seventh of its short side", low=0)
    stride: int = param(0, "step of the patch in the input's pixels; 0 = half the window", low=0)
    baseline: str | float = param("zero", "what the patch shows: zero (the mean colour), black, grey, white, blur, "
                                          "0 to 1")
    value: str = param("logit", "the score of a class: logit, probability or log_odds", choices=VALUES)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline(self.baseline, self.name())

    def check(self, model: Model) -> None:
        """Raise XaiError where the model has no forward, or the window does not fit its input."""
        super().check(model)
        self._sides(*model.preprocessing.size)

    def passes(self, model: Model) -> Passes:
        """A forward for each place of the patch, and one for the picture as it is."""
        height, width = model.preprocessing.size
        window, stride = self._sides(height, width)
        return Passes(forwards=len(starts(height, window, stride)) * len(starts(width, window, stride)) + 1)

    def within(self, work: float, model: Model) -> Occlusion | None:
        """With a window twice, four times, ... as wide, and a stride of half of it."""
        window, _ = self._sides(*model.preprocessing.size)
        forms = [self] + [dataclasses.replace(self, window=window * by, stride=max(1, window * by // 2))
                          for by in (2, 4) if window * by < min(model.preprocessing.size)]
        return next((form for form in forms if form.passes(model).work <= work), None)

    def picture(self, sampler: Sampler) -> list[Found]:
        """(H, W) at the input's size for each target."""
        sides = sampler.x.shape[-2:]
        window, stride = self._sides(*sides)
        rows, columns = (starts(side, window, stride) for side in sides)
        scores = self._scores(sampler, torch.cartesian_prod(rows, columns).view(-1, 2), window)
        drops = (scores[0] - scores[1:]).T.reshape(-1, len(rows), len(columns))
        down, across = (covers(at, window, side) for at, side in zip((rows, columns), sides, strict=True))
        count = down.sum(0)[:, None] * across.sum(0)
        return [Found(down.T @ drop @ across / count) for drop in drops]

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        """(window, stride) for an input of that size."""
        short = min(height, width)
        window = self.window or max(1, round(short / SHARE))
        if window > short:
            raise error("occlusion.window", f"at most the input's short side, {short}", window, "Take a smaller one")
        stride = self.stride or max(1, window // 2)
        if stride > window:
            raise error("occlusion.stride", f"at most the window, {window}, so that every pixel is covered", stride,
                        "Take a smaller one")
        return window, stride

    def _scores(self, sampler: Sampler, corners: Tensor, window: int) -> Tensor:
        """(1 + k, T): the picture's own, and those with the patch at each of the corners (k, 2)."""
        fill, model = sampler.baseline(self.baseline, self.name()), sampler.model
        reach = Reach.of(model) if model.device.type == "cpu" else None
        fits = reach is not None and reach.shape[1:] == sampler.x.shape
        if reach is not None and fits and reach.saving(window, window) > WORTH:
            return _near(sampler, reach, corners, window, fill)

        def paint(codes: Tensor, out: Tensor) -> None:
            out.copy_(sampler.x)
            for row, (top, left) in zip(out, codes.tolist(), strict=True):
                if top >= 0:
                    row[:, top : top + window, left : left + window] = fill[:, top : top + window, left : left + window]

        codes = torch.cat([torch.full((1, 2), -1), corners])
        return torch.cat([answer.scores for answer in sampler.ask([codes], paint)])


def starts(side: int, window: int, stride: int) -> Tensor:
    """Where the patch begins along one axis: every `stride` pixels, the last one moved back to the border."""
    count = -(-(side - window) // stride) + 1
    return (torch.arange(count) * stride).clamp_max(side - window)


def covers(at: Tensor, window: int, side: int) -> Tensor:
    """(places, side) float64: 1 where the patch that begins there covers a pixel, else 0."""
    pixel = torch.arange(side) - at[:, None]
    return ((pixel >= 0) & (pixel < window)).double()


def _near(sampler: Sampler, reach: Reach, corners: Tensor, window: int, fill: Tensor) -> Tensor:
    """The same scores, of layers that are computed only near the patches; the picture's own is that of a patch of its
    own pixels, so that it is rounded as the others are."""
    patched = reach.at(sampler.model, sampler.x[None])
    fixed, memory = sampler.batch.pacing.fixed, sampler.batch.pacing.memory_bytes
    size = fixed or reach.rows(window, window, memory, sampler.model.device)
    places, found, first = torch.cat([corners[:1], corners]), [], 0
    while first < len(places):
        top, left = places[first : first + size].T.tolist()
        try:
            patches = torch.stack([fill[:, y : y + window, x : x + window] for y, x in zip(top, left, strict=True)])
            if first == 0:
                patches[0] = sampler.x[:, top[0] : top[0] + window, left[0] : left[0] + window]
            found.append(sampler.read(patched(top, left, patches)))
        except (OutOfMemory, torch.OutOfMemoryError, MemoryError):
            if size == 1:
                raise
            size //= 2
            continue
        first += len(top)
    return torch.cat(found)
