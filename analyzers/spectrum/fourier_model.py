"""A classifier and frequencies: errors under each Fourier wave, the gradient's spectrum, filters, kernels, maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from analyzers.spectrum import _model_panels, _probes
from analyzers.spectrum._groups import spaced
from analyzers.spectrum._model_panels import Asked, MapSums
from xai.analyzer import Analyzer, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.controls import methods_of, problems_of
from xai.errors import XaiError, error
from xai.images import Images
from xai.model import Model
from xai.panels import AnyPanel, Text, shown
from xai.result import Cost, Verdict
from xai.streaming import Left
from xai.subject import Subject


@dataclass(frozen=True)
class FourierModel(Analyzer):
    """Frequencies that a classifier uses: errors under each Fourier wave, the gradient's spectrum, filters and kernels.

    Heat map: U_f(y, x) = cos(2 pi (fy y / h + fx x / w)) of L2 norm 1; each channel of a picture in [0, 1] gets r_c v
    U_f, r_c = +-1 for each picture and channel and the same for all f, the sum is clipped to [0, 1] and normalised. A
    cell is the share of pictures that are classified wrongly, where the labels of all are known; else the share whose
    prediction changes. f and -f are the same wave: only one is asked. Gradient: |FFT dL/dx|^2, L the cross entropy of
    the label (of the prediction where there is none), channels averaged after the square; each picture's is divided by
    its sum. Filters: accuracy with the frequencies up to a cut alone, and with those above it and the mean colour.
    Kernels: mean |response|^2 of the first convolution in closed form. Maps: the rings of attribution maps' spectra.

    Reads     one or more classifiers, images; labels where there are any
    Yields    for each model the heat map, the mean loss beside it, and the gradient's spectrum with the rank
              correlation of the two; accuracy by cut; the first kernels' spectrum and what their stride aliases;
              spectra of attribution maps; of two models the difference of their heat maps
    Raises    XaiError if a model is no classifier, its preprocessing is not known, or no picture can be used
    Cost      a picture: a forward for each wave (at most side^2 / 2, and `side` more), 18 for the filters, one and a
              backward for the gradient, and the maps' own. Memory does not grow with the pictures
    Reference Yin et al. 2019, "A Fourier Perspective on Model Robustness in Computer Vision", arXiv:1906.08988;
              Krishnamachari, Ng, Foo 2022, "Fourier Sensitivity and Regularization of Computer Vision Models",
              arXiv:2301.13514
    """

    needs: ClassVar[frozenset[str]] = frozenset({"forward", "images"})
    shares: ClassVar[bool] = True
    upper: ClassVar[bool] = True  # an axis of the picture may have fewer frequencies than are asked for

    side: int = param(31, "frequencies along each axis, from -15 to 15 steps; the cost grows with its square", low=3)
    span: str = param("whole", "whole: steps as wide as it takes to reach Nyquist; centre: of one cycle a picture",
                      choices=("whole", "centre"))
    norm: float = param(0.0, "L2 norm a channel of the wave, in units of [0, 1]; 0: 4 at 32 pixels, 15.7 at 224 as "
                             "published, the power law through both elsewhere", low=0)
    pictures: int = param(100, "pictures that are asked about, evenly spaced; more narrow the intervals", low=2)
    filters: str = param("hard", "edge of the low- and high-pass filters: hard, or smooth (Butterworth, order 4)",
                         choices=("hard", "smooth"))
    of: str = param("saliency", "attributions whose maps' spectra are drawn, separated by commas, or none")
    layer: str | None = param(None, "the layer of those of them that look at one; none: their own default")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._methods()

    def _methods(self) -> tuple[Attribution, ...]:
        if self.of.strip() in ("", "none"):
            return ()
        own: dict[str, Any] = {} if self.layer is None else {"layer": self.layer}
        return tuple(dataclasses.replace(one, **own) if hasattr(one, "layer") else one for one in methods_of(self.of))

    def _usable(self, model: Model) -> tuple[list[Attribution], list[str]]:
        """The attributions that the model can serve, and what was said of the others."""
        methods = self._methods()
        problems = problems_of(methods, model)
        return [one for one in methods if one not in problems], [str(said) for said in problems.values()]

    def passes(self, model: Model) -> Passes:
        """At most: the waves of a square, the filters, the gradient, the maps."""
        maps = [one.passes(model) for one in self._usable(model)[0]]
        back = "gradients" in model.capabilities
        cells = len(_probes.grid(*model.preprocessing.size, self.side, self.span).cells)
        return Passes(forwards=cells + 2 * len(_probes.CUTS) + back + sum(one.forwards for one in maps),
                      backwards=back + sum(one.backwards for one in maps))

    def cost(self, subject: Subject) -> Cost:
        """For the pictures that are asked about."""
        n, each = min(len(subject.images or ()), self.pictures), [self.passes(model) for model in subject.models]
        return Cost(forwards=round(sum(n * (1 + per.forwards) for per in each)),
                    backwards=round(sum(n * per.backwards for per in each)))

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """Each model's sums first, then all on one page."""
        if subject.images is None or not len(subject.images):
            raise error(f"the pictures for {self.name()}", "given", "none", "Name a folder or a data set with --data")
        if not subject.models:
            raise error(f"the models for {self.name()}", "given", "none", "Name one with --model")
        left = Left()
        images = subject.images.take(spaced(range(len(subject.images)), self.pictures))
        asked = [self._asked(subject, model, images, left) for model in subject.models]
        labelled = all(one.known == one.n for one in asked)
        yield from _model_panels.summary(asked, labelled)
        yield from _model_panels.heat_maps(asked, labelled)
        yield from _model_panels.by_frequency(asked, labelled)
        yield from _model_panels.filtered(asked, labelled, self.filters)
        yield from _model_panels.kernels(subject.models)
        yield from _model_panels.maps(asked)
        said = list(dict.fromkeys(text for model in subject.models for text in self._usable(model)[1]))
        if said:
            yield Text(key="missing", title="Maps that could not be made", text=" ".join(said), tone="warning")
        if left.pictures:
            yield left.panel()

    def _asked(self, subject: Subject, model: Model, images: Images, left: Left) -> Asked:
        """Everything that one model says about the pictures."""
        height, width = model.preprocessing.size
        cells = _probes.grid(height, width, self.side, self.span)
        sums = Asked.none(model, cells, (height, width), self.norm or _probes.norm_for(height, width))
        methods = self._usable(model)[0]
        for batch in model.prepare(images, seed=subject.seed, memory_bytes=subject.memory_bytes,
                                   bad=left.add):
            if batch.inputs.shape[-2:] != (height, width):
                for one in batch.images:
                    left.add(one.name, "a prepared tensor of another size")
                continue
            for method in methods:
                batch.want(*method.layers())
            self._one_batch(batch, sums)
            for method in methods:
                self._mapped(batch, subject, method, sums)
        if not sums.n:
            raise XaiError(left.first)
        return sums

    def _one_batch(self, batch: Batch, sums: Asked) -> None:
        predicted, labels = _probes.classes_of(batch)
        truth = torch.where(labels >= 0, labels, predicted)
        sums.clean(predicted, labels, _probes.losses(batch.output(), truth))
        chunk = max(1, batch.pacing.batch)
        sign = _probes.signs(batch, self.name())
        for first, i, outputs in _probes.perturbed(batch, sums.grid.cells, sums.norm, sign, chunk):
            sums.waves(first, outputs, predicted[i], labels[i], truth[i])
        for k, cut in enumerate(_probes.CUTS):
            for high in (False, True):
                inputs = _probes.filtered(batch, cut, high, self.filters == "smooth")
                sums.filters(k, high, batch.model.infer(inputs, chunk), predicted, labels)
        if "gradients" in batch.model.capabilities:
            sums.gradient(_probes.gradient_power(batch, truth))

    def _mapped(self, batch: Batch, subject: Subject, method: Attribution, sums: Asked) -> None:
        made = method.maps(batch, batch.bind(subject.targets[0]))
        values = shown(made.values.detach().double().cpu().numpy(), method.view)
        into = sums.maps.setdefault(method, MapSums())
        for one in values:
            into.add(one, sums.shape)
