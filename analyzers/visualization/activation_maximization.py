"""Activation maximisation: the pictures that excite classes, channels, neurons, directions and layers most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from analyzers.visualization import _excited, _quality
from analyzers.visualization._ascent import JOB, Network, Plan, ascend
from analyzers.visualization._excited import Made, Setting
from analyzers.visualization._objectives import Term, Unit, parse, split
from analyzers.visualization._parameterisation import (
    PARAMETERISATIONS,
    Maco,
    Parameterisation,
    analytic,
    spectral_distance,
)
from analyzers.visualization._transforms import STACKS
from xai import seeds
from xai.analyzer import Analyzer, param
from xai.errors import XaiError, error
from xai.images import Images
from xai.model import Model
from xai.panels import AnyPanel
from xai.result import Cost, Verdict
from xai.streaming import Left
from xai.subject import Subject

SIDE = 128  # pixels, where the network takes any size
AT_ONCE = 8  # pictures a forward holds on a CPU: more are no faster
REFERENCE = 16  # pictures by which the strongest units are chosen


@dataclass(frozen=True)
class ActivationMaximization(Analyzer):
    """Activation maximisation: the pictures that excite a model's classes, channels, neurons or directions most.

    x = argmax over z of mean over t of a(f(t(g(z)))) - sum of weight_k R_k(g(z)): g writes a picture down (pixels; a
    spectrum scaled by 1/f in decorrelated colours; phases alone under natural magnitudes, MACO), t are random jitter,
    scale, turn or crops, a is a logit or activation, R the penalties. Each of the four is free. For the first 16 steps
    a ReLU that would stop all of a picture's gradient lets through what pushes it up (lucid); a unit that still gives
    one and the same value, or that no gradient leaves, is said to be dead. Transforms are drawn for each (seed, step),
    starts and noise for each (seed, unit): what else is optimised changes no draw.

    Such a picture is a hypothesis about the unit, not evidence: networks can be built whose pictures show anything
    (Geirhos et al. 2024, arXiv:2306.04719).

    Reads     one model; more models, which then say whether they see the class too; images, whose spectrum and whose
              strongest response the pictures are compared with
    Yields    for each unit the picture, frames of its way, and the objective's curve; a table of how it holds under
              other augmentations, how far its spectrum is from natural ones (decades), and what other models say
    Raises    XaiError if a unit is unknown, the preprocessing is not known, or the network does not take the size
    Cost      for each picture steps x crops forwards and backwards and 18 more forwards, one for each other model; one
              for each image; 16 where no units are named; one to see whether the network takes the size. 16 pictures
              are optimised at a time
    Reference Olah, Mordvintsev, Schubert 2017, "Feature Visualization", doi:10.23915/distill.00007; Erhan et al. 2009;
              Fel et al. 2023, arXiv:2306.06805; Simonyan et al. 2014, arXiv:1312.6034
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradients", "hooks"})
    upper: ClassVar[bool] = True  # which size the network takes, and whether there are as many live units, is not known

    units: str = param("auto", "what is maximised, separated by commas: class:281 or a class name, LAYER:CHANNEL, "
                               "LAYER:CHANNEL@y,x, LAYER:[3=0.5 7=-1] (a direction), LAYER, sums and differences such "
                               "as 'class:281 - 0.5*class:282'; auto: the named target, else the strongest")
    count: int = param(8, "how many units where none are named: half of them classes, half channels", low=1)
    channels_of: str = param("auto", "the layer whose strongest channels are taken where no units are named")
    parameterisation: str = param("fourier", "how a picture is written down: fourier (decorrelated colours), pixel, "
                                             "or maco (phases under natural magnitudes)",
                                  choices=tuple(PARAMETERISATIONS))
    transforms: str = param("auto", "what a picture must be robust to: wide (jitter, scale, turn, mirror), standard "
                                    "(lucid's jitter, scale, turn), jitter, crops, none; auto: wide, of maco crops",
                            choices=("auto", *STACKS))
    crops: int = param(0, "transforms drawn in a step, whose mean is climbed; 0: one, of maco four", low=0)
    steps: int = param(256, "steps of Adam (maco: NAdam)", low=1)
    rate: float = param(0.0, "size of a step; 0: 0.05 of fourier, 0.02 of pixel, 1 of maco", low=0)
    size: int = param(0, "side of the pictures in pixels; 0: 128, or the model's own where that is smaller or the "
                         "network takes no other", low=0)
    copies: int = param(1, "pictures of each unit, from different starts", low=1, high=JOB)
    diversity: float = param(0.0, "charge for the likeness of a unit's copies: of the Gram matrices of the unit's "
                                  "layer, of a class those of the auto layer", low=0)
    noise: float = param(0.0, "standard deviation of the noise that is added in every step", low=0)
    l2: float = param(0.0, "charge for the mean of (x - 0.5)^2", low=0)
    tv: float = param(0.0, "charge for the mean total variation", low=0)
    blur: float = param(0.0, "charge for the mean of (x - x blurred by one pixel)^2", low=0)
    cosine_power: float = param(0.0, "power p of a direction's dot product times max(0.1, cosine)^p", low=0)

    def cost(self, subject: Subject) -> Cost:
        """The most that the pictures take, and what says how good they are."""
        rows = self._wanted(subject) * self.copies
        climbed = rows * self.steps * self._draws
        more = rows * (_quality.FRESH + 2 + len(subject.models[1:]))
        return Cost(forwards=climbed + more + REFERENCE + 1 + len(subject.images or ()), backwards=climbed)

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """The pictures, job by job, then what they are worth."""
        if not subject.models:
            raise error("the number of models", "one or more for this method", 0, "Name one with --model")
        model, images = subject.models[0], subject.images
        for judge in subject.models:
            judge.preprocessing.constant(0.5)  # it is known, or the sentence comes now
        size, left = self._size(model), Left()
        spectrum = None if images is None else _quality.mean_magnitudes(_quality.natural(model, images, size, left))
        natural = analytic(model.preprocessing.channels, *size) if spectrum is None else spectrum
        setting = Setting(size, self._how(model, size, spectrum), natural,
                          "analytic" if spectrum is None else "those of the images")
        units = self._units(subject, setting)
        made: list[Made] = []
        for job in _jobs(units, self.copies):
            made += self._job(model, subject, setting, job)
        values = self._natural(model, images, size, units) if images is not None else torch.zeros(0, len(units))
        best = {unit.text: float(v) for unit, v in zip(units, values.amax(0), strict=True)} if len(values) else {}
        yield from _excited.panels(model, subject.models[1:], made, best, len(values), setting, self._plan(setting))
        if left.pictures:
            yield left.panel()

    # --- what is asked ---
    def _named(self, subject: Subject) -> list[str]:
        """The units that a person named, by `units` or as the target; none where the strongest are to be chosen."""
        if self.units.strip() != "auto":
            return split(self.units)
        for target in subject.targets:
            if target.function is not None or target.text == "label" or target.text.startswith("rank:"):
                raise error(f"the target of {self.name()}", "a class or a contrast: there is no picture yet that it "
                            "could be read from", repr(target.text), "Name units with --set units=...")
        return [target.text for target in subject.targets if target.text != "top1"]

    def _wanted(self, subject: Subject) -> int:
        return len(self._named(subject)) or self.count

    @property
    def _draws(self) -> int:
        return self.crops or PARAMETERISATIONS[self.parameterisation].draws

    def _size(self, model: Model) -> tuple[int, int]:
        """The side asked for, else 128 where that is no more than the network's own and it takes it."""
        own = model.preprocessing.size
        wanted = (self.size, self.size) if self.size else (SIDE, SIDE) if min(own) > SIDE else own
        if wanted == own:
            return own
        before = model.cost.forwards
        try:
            with torch.no_grad():
                model.run(torch.zeros(1, model.preprocessing.channels, *wanted).to(model.device, model.dtype))
        except XaiError as problem:
            model.cost.add(forwards=before + 1 - model.cost.forwards)  # it was begun
            if self.size:
                raise error(f"{self.name()}.size", f"one that {model.spec} takes", f"{self.size}: {problem}",
                            f"Leave it out: its own size is {own[0]} x {own[1]}") from problem
            return own
        return wanted

    def _how(self, model: Model, size: tuple[int, int], spectrum: Tensor | None) -> Parameterisation:
        channels = model.preprocessing.channels
        if self.parameterisation == "maco":
            return Maco(channels, size, spectrum)
        return PARAMETERISATIONS[self.parameterisation](channels, size)

    def _plan(self, setting: Setting) -> Plan:
        how = setting.how
        return Plan(how, self.steps, how.stack if self.transforms == "auto" else self.transforms, self._draws,
                    self.rate or how.rate, self.noise, {"l2": self.l2, "tv": self.tv, "blur": self.blur})

    # --- the units ---
    def _units(self, subject: Subject, setting: Setting) -> list[Unit]:
        model, named = subject.models[0], self._named(subject)
        example = _example(model, setting.size)
        if named:
            return list(dict.fromkeys(parse(text, model, example) for text in named))
        if self.units.strip() != "auto":
            raise error(f"{self.name()}.units", "one unit or more", repr(self.units), "For example class:0")
        return self._strongest(model, subject, setting, example)

    def _strongest(self, model: Model, subject: Subject, setting: Setting, example: Tensor) -> list[Unit]:
        """Half classes, half channels: those that answer most, and not always alike, to the first images, or to noise
        of a natural spectrum."""
        try:
            term = Term(1.0, "layer", view=model.view(self.channels_of, example))
        except XaiError:
            if self.channels_of != "auto":
                raise
            term = Term(1.0, "class")  # a network without a layer that has places
        pictures = self._reference(model, subject, setting)
        with Network(model, [Unit("", (term,))] * len(pictures), 0.0, len(pictures)).open() as network:
            output, found = network.ask(pictures)
        classes = output.float() if output.ndim == 2 and model.head.kind != "embedding" else output.new_zeros(1, 0)
        channels = classes.new_zeros(1, 0) if term.view is None else term.view.to_map(
            found[term.view]).float().mean((2, 3))
        half = self.count if not channels.shape[1] else -(-self.count // 2) if classes.shape[1] else 0
        texts = [f"class:{i}" for i in _strong(classes, half)]
        texts += [f"{self.channels_of}:{i}" for i in _strong(channels, self.count - len(texts))]
        if not texts:
            raise error("the model", "one of which a class or channel answers to the pictures", f"{model.spec}, which "
                        "gives every picture the same", "Name units with --set units=...")
        return [parse(text, model, example) for text in texts]

    def _reference(self, model: Model, subject: Subject, setting: Setting) -> Tensor:
        if subject.images is not None:
            return torch.cat(list(_quality.natural(model, subject.images[:REFERENCE], setting.size, Left())))
        noise = Maco(model.preprocessing.channels, setting.size)
        made = seeds.generator(0, "reference", self.name())  # which units are shown does not follow the seed
        return noise.picture(torch.stack([noise.start(made) for _ in range(REFERENCE)])).to(model.device)

    # --- one job ---
    def _job(self, model: Model, subject: Subject, setting: Setting, units: list[Unit]) -> list[Made]:
        rows = [unit for unit in units for _ in range(self.copies)]
        names = [f"{unit.text} #{copy}" for unit in units for copy in range(self.copies)]
        layer = None
        if self.diversity and self.copies > 1:
            layer = next(iter(units[0].views), None) or model.view("auto", _example(model, setting.size))
        most = JOB if model.device.type != "cpu" else AT_ONCE
        at_once = max(1, min(most, model.chunk(subject.memory_bytes)))
        if layer is not None:  # copies must meet
            at_once = max(self.copies, at_once // self.copies * self.copies)
        network = Network(model, rows, self.cosine_power, at_once, self.diversity, layer)
        with network.open():
            found = ascend(network, names, self._plan(setting), subject.seed)
            first, _ = network.look(found.first.to(model.device))
            reached, _ = network.look(found.pictures.to(model.device))
            others = _quality.under_others(network, found.pictures, subject.seed)
        apart = spectral_distance(found.pictures, setting.natural)
        seen = [_quality.transferred(judge, model, rows, found.pictures) for judge in subject.models[1:]]
        return [Made(rows[i], names[i], i, found, float(first[i]), float(reached[i]), others, apart[i],
                     tuple(float(one[i]) for one in seen)) for i in range(len(rows))]

    def _natural(self, model: Model, images: Images, size: tuple[int, int], units: list[Unit]) -> Tensor:
        """(n, units) values of the images at the size of the pictures."""
        with Network(model, units, self.cosine_power, len(units)).open() as network:
            return torch.cat([network.each(part) for part in _quality.natural(model, images, size, Left())])


def _example(model: Model, size: tuple[int, int]) -> Tensor:
    """An input (1, C, H, W) of that size."""
    own = model.example()
    return own if tuple(own.shape[-2:]) == size else torch.nn.functional.interpolate(own, size)


def _jobs(units: list[Unit], copies: int) -> Iterator[list[Unit]]:
    """As many units as have their copies in a job of 16 pictures."""
    each = max(1, JOB // copies)
    return (units[start : start + each] for start in range(0, len(units), each))


def _strong(values: Tensor, most: int) -> list[int]:
    """The columns of values (n, k) with the largest means, of those that are not constant."""
    mean = values.mean(0)
    order = mean.sort(descending=True, stable=True).indices
    live = (values.amax(0) > values.amin(0)) & mean.isfinite()
    return [int(i) for i in order if live[i]][:most]
