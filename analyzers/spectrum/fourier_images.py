"""Fourier spectra of pictures: how power falls with frequency, lines and grids in it, and two folders compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from analyzers.spectrum import _detectors, _image_panels
from analyzers.spectrum._groups import GROUPED, LEAST, Group, Groups, grouped, spaced, weights
from analyzers.spectrum._image_panels import GRIDS, Sums
from xai import spectrum
from xai.analyzer import Analyzer, param
from xai.errors import error
from xai.images import Image
from xai.panels import AnyPanel, Text
from xai.result import Verdict
from xai.subject import Subject


@dataclass(frozen=True)
class FourierImages(Analyzer):
    """Fourier spectra of pictures: power by frequency and its decay, lines and grids, and two folders compared.

    x is the grey (BT.601, not rounded) or a channel of a picture in [0, 1]; P(f) = |FFT(w (x - mean x))|^2 / (h w) with
    a Hann window w of mean square 1; the profile is the mean of P over rings |f| = r from the true zero frequency, r in
    cycles per pixel up to 0.5. Over pictures power is averaged before the logarithm is taken. The decay is the exponent
    a of P ~ r^-a on the rings from `tail` to 0.5, fitted a picture at a time. Rounding to 8 bits alone gives P = v / 12
    / 255^2 at every frequency (v = .299^2 + .587^2 + .114^2 for the grey of a colour picture): a tail near it is the
    file format's and not the scene's.

    Two groups (two `--data`, or a folder with two sub-folders) are compared ring by ring with Welch's test of the mean
    log power, Holm's correction over the rings, and by their exponents. Differences of resizing, compression or bit
    depth between the groups are found as well as any other: this is an indicator, not a verdict.

    Reads     images
    Yields    for each group the profile with its 95 % band beside the rounding floor, the plane of power, the decay
              with its interval, lines and grids; of two groups the difference by frequency and its test, and how well
              two detectors of generated pictures tell them apart, with the reason not to trust them
    Raises    XaiError if no picture of a group is usable, or two groups are asked for and are not there
    Cost      no forwards; each picture is read twice (once where a size is named), and up to `most` of two groups once
              more for the detectors; memory holds sums, one picture, and the detectors' features of up to `most`
              pictures a group
    Reference Durall, Keuper, Keuper 2020, "Watch your Up-Convolution", arXiv:2003.01826; Dzanic, Shah, Witherden 2020,
              "Fourier Spectrum Discrepancies in Deep Network Generated Images", arXiv:1911.06465; Chandrasegaran, Tran,
              Cheung 2021, "A Closer Look at Fourier Spectrum Discrepancies for CNN-generated Images Detection",
              arXiv:2103.17195
    """

    needs: ClassVar[frozenset[str]] = frozenset({"images"})
    shares: ClassVar[bool] = True

    groups: str = param("auto", "what makes two groups: source (two --data), label (two classes), none, or auto: the "
                                "first of these that there are two of", choices=GROUPED)
    channels: str = param("grey", "grey, or each: also red, green and blue", choices=("grey", "each"))
    window: str = param("hann", "hann, or none: only for what is periodic", choices=("hann", "none"))
    size: int = param(0, "side in pixels of the square cut from the middle of each picture; 0: whole pictures where "
                         "all are alike, else the largest that 95 % of them hold; at least 8", low=0, high=4096)
    tail: float = param(0.25, "where the tail of the decay begins, in cycles per pixel", low=0.01, high=0.45)
    detectors: str = param("durall,dzanic", "which detectors are trained on two groups: durall (profile + linear SVM), "
                                            "dzanic (decay + kNN), or none")
    most: int = param(1000, "pictures a group that a detector is trained and judged on, evenly spaced", low=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        _detectors.check(self.detectors, self.name())
        if 0 < self.size < LEAST:
            raise error(f"{self.name()}.size", f"0 or at least {LEAST}", self.size, "Name a larger square")

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """The sums of each group first, then what they say."""
        found = grouped(subject, self.groups, self.size, self.name())
        sums = [self._summed(subject, found, group) for group in found.groups]
        yield found.counts()
        yield from _image_panels.spectra(sums, self.tail)
        yield from _image_panels.lines(sums)
        if len(sums) == 2:
            yield from _image_panels.compared(sums[0], sums[1])
            yield from self._detected(subject, found)
        yield Text(key="reading", title="How to read this", text=_image_panels.READING)

    def _summed(self, subject: Subject, found: Groups, group: Group) -> Sums:
        assert subject.images is not None
        height, width = found.shape
        sums = Sums.none(group.name, spectrum.rings(height, width), 4 if self.channels == "each" else 1)
        taper = spectrum.window(height, width, self.window)
        for image in found.pictures(subject.images, group):
            self._add(sums, image, taper)
        return sums

    def _add(self, sums: Sums, image: Image, taper: np.ndarray) -> None:
        values = spectrum.grey(image.pixels)
        powers = [spectrum.power(values, taper)]
        if self.channels == "each":
            own = spectrum.unit(image.pixels)
            own = own if len(own) == 3 else np.stack([values] * 3)
            powers += list(spectrum.power(own, taper))
        means = sums.rings.means(np.stack(powers))
        fit = spectrum.decay(sums.rings.frequency, means[0], sums.rings.counts, self.tail)
        sums.add(means, powers[0], fit, spectrum.rounding_floor(image.pixels.dtype.name, weights(image.pixels)),
                 [spectrum.grid_f(values, step) for step in GRIDS])

    def _detected(self, subject: Subject, found: Groups) -> Iterator[AnyPanel]:
        assert subject.images is not None
        names = _detectors.listed(self.detectors)
        if not names:
            return
        features = []
        for group in found.groups:
            taken = Group(group.name, tuple(spaced(group.members, self.most)))
            features.append([(image.hash, {name: _detectors.FEATURES[name](image) for name in names})
                             for image in found.pictures(subject.images, taken)])
        yield from _detectors.judged(features, found.groups[0].name, found.groups[1].name, subject.seed)
