"""How a picture is written down while it is optimised: pixels, a spectrum in decorrelated colours, or phases (MACO)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

COLOUR = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))  # root of ImageNet's colour covariance (lucid)
CLIPPED = 1e-3  # of a natural picture's values, before its logit
EPS = 1e-4


def mixing() -> Tensor:
    """(3, 3) float64 M: rgb = M @ (luminance, red-blue, green-magenta); its largest column has length 1."""
    root = torch.tensor(COLOUR, dtype=torch.float64)
    return root.div(root.norm(dim=0).max())


def coloured(z: Tensor) -> Tensor:
    """(n, C, H, W) of decorrelated channels as colours; other channel counts than three as they are."""
    return (mixing().to(z) @ z.flatten(2)).view_as(z) if z.shape[1] == 3 else z


def frequencies(height: int, width: int) -> Tensor:
    """(H, W/2+1) cycles per pixel of what `rfft2` gives, float64."""
    fy, fx = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.rfftfreq(width, dtype=torch.float64)
    return torch.hypot(fy[:, None], fx)


def analytic(channels: int, height: int, width: int) -> Tensor:
    """(C, H, W/2+1) magnitudes r(f) = f^-1.25 exp(-(f/0.3)^2): the shape of ImageNet's mean spectrum in decorrelated
    logits, within 12 % of it from 0.005 to 0.4 cycles per pixel; nothing at f = 0."""
    f = frequencies(height, width)
    r = f.clamp_min(1 / max(height, width)) ** -1.25 * torch.exp(-((f / 0.3) ** 2))
    r[0, 0] = 0
    return r.float().expand(channels, -1, -1)


def magnitudes(pictures: Tensor) -> Tensor:
    """(n, C, H, W/2+1) magnitudes of pictures (n, C, H, W) in [0, 1], as decorrelated logits: what `analytic` is of."""
    logits = torch.logit(pictures.double(), CLIPPED)
    if logits.shape[1] == 3:
        logits = torch.einsum("dc,nchw->ndhw", torch.linalg.inv(mixing()).to(logits.device), logits)
    spectrum: Tensor = torch.fft.rfft2(logits, norm="ortho")
    return spectrum.abs()


@dataclass(frozen=True)
class Parameterisation:
    """Parameters of pictures (n, C, H, W) in [0, 1]. `rate`: Adam's step; `stack`: the transforms that suit it."""

    channels: int
    size: tuple[int, int]
    rate: ClassVar[float] = 0.05
    stack: ClassVar[str] = "wide"
    draws: ClassVar[int] = 1

    def start(self, generator: torch.Generator) -> Tensor:
        """One picture's parameters, without the leading axis."""
        raise NotImplementedError

    def picture(self, p: Tensor) -> Tensor:
        """The pictures (n, C, H, W) of parameters (n, ...); each depends on its own alone."""
        raise NotImplementedError

    def keep(self, p: Tensor) -> None:
        """Hold the parameters where they must stay, in place, after a step."""

    def _spectral(self) -> tuple[int, int, int]:
        return self.channels, self.size[0], self.size[1] // 2 + 1


class Pixel(Parameterisation):
    """The values themselves, held in [0, 1] after each step; starts as grey with a little noise (Erhan et al. 2009)."""

    rate: ClassVar[float] = 0.02

    def start(self, generator: torch.Generator) -> Tensor:
        """(C, H, W)."""
        return 0.5 + 0.01 * torch.randn(self.channels, *self.size, generator=generator)

    def picture(self, p: Tensor) -> Tensor:
        """Themselves."""
        return p * 1

    def keep(self, p: Tensor) -> None:
        """In [0, 1]."""
        p.clamp_(0, 1)


class Fourier(Parameterisation):
    """A spectrum scaled by 1/f, in decorrelated colours, through a sigmoid (Olah et al. 2017; lucid's constants)."""

    def start(self, generator: torch.Generator) -> Tensor:
        """(C, H, W/2+1, 2): real and imaginary parts."""
        return 0.01 * torch.randn(*self._spectral(), 2, generator=generator)

    def picture(self, p: Tensor) -> Tensor:
        """A flat grey where all is zero."""
        scale = (0.25 / frequencies(*self.size).clamp_min(1 / max(self.size))).to(p)
        values = torch.fft.irfft2(torch.view_as_complex(p * scale[..., None]), s=self.size, norm="ortho")
        return coloured(values).sigmoid()


@dataclass(frozen=True)
class Maco(Parameterisation):
    """Phases alone, the magnitudes fixed at those of natural pictures (Fel et al. 2023, arXiv:2306.06805).

    template: (C, H, W/2+1), not negative; None: `analytic`.
    """

    template: Tensor | None = None
    rate: ClassVar[float] = 1.0
    stack: ClassVar[str] = "crops"
    draws: ClassVar[int] = 4

    def start(self, generator: torch.Generator) -> Tensor:
        """(C, H, W/2+1)."""
        return torch.randn(*self._spectral(), generator=generator)

    def picture(self, p: Tensor) -> Tensor:
        """Phases and values are standardised over all channels of a picture."""
        r = analytic(*(self.channels, *self.size)) if self.template is None else self.template
        values = torch.fft.irfft2(torch.polar(r.to(p).expand_as(p), standardised(p)), s=self.size)
        return coloured(standardised(values)).sigmoid()


def standardised(x: Tensor) -> Tensor:
    """(n, ...): each of mean 0 and standard deviation 1 over all but the first axis."""
    axes = tuple(range(1, x.ndim))
    return (x - x.mean(axes, keepdim=True)) / (x.std(axes, keepdim=True) + EPS)


def spectral_distance(pictures: Tensor, natural: Tensor) -> list[float]:
    """How far the spectrum of each picture (n, C, H, W) is from natural magnitudes (C, H, W/2+1), in decades.

    The root mean square, over rings of equal width in log frequency and over channels, of the difference of the log10
    of the rings' mean magnitudes; less the mean difference, as contrast is free. 0: of the same shape.
    """
    height, width = pictures.shape[-2:]
    f = frequencies(height, width).flatten()
    low = 1 / min(height, width)
    bins = max(2, round(2 * math.log2(0.5 / low)))
    place = ((f / low).clamp_min(1e-9).log2() * bins / math.log2(0.5 / low)).floor().long()
    inside = (place >= 0) & (place < bins)

    def rings(m: Tensor) -> Tensor:
        flat = m.cpu().double().flatten(-2)[..., inside]
        held = place[inside].bincount(minlength=bins)
        total = torch.zeros(*flat.shape[:-1], bins, dtype=torch.float64).index_add_(-1, place[inside], flat)
        return (total / held.clamp_min(1))[..., held > 0].clamp_min(1e-12).log10()

    apart = rings(magnitudes(pictures)) - rings(natural)
    apart = apart - apart.mean((-2, -1), keepdim=True)
    return [float(v) for v in apart.square().mean((-2, -1)).sqrt()]


PARAMETERISATIONS: dict[str, type[Parameterisation]] = {"fourier": Fourier, "pixel": Pixel, "maco": Maco}
