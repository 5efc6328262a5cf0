"""SP-LIME: the few pictures that between them show most of what a model looks for in many."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from analyzers.concepts import _evidence
from analyzers.concepts._drawn import Packed
from analyzers.concepts._evidence import Parts, Seen, View
from analyzers.concepts._left import Left
from analyzers.concepts._pick import Coverage, importance, shared_out, sparsified
from analyzers.concepts._words import Words, group, pooled, raster, unit
from xai import seeds
from xai.analyzer import Analyzer, Passes, param
from xai.batch import Batch
from xai.errors import XaiError, error
from xai.local_fit import explain_segments, forwards
from xai.model import Model
from xai.panels import AnyPanel, Text
from xai.sampler import VALUES, Sampler, shown
from xai.segments import METHODS
from xai.subject import Subject
from xai.superpixels import check_superpixels, hidden_by, superpixels
from xai.targets import Bound

CARRIED = 0.9  # of a picture's absolute weights: by the superpixels that count, the largest ones
DRAWS = 200  # of the control: random picks
EACH = 5  # superpixels a word on average, at least: a word of one superpixel makes nothing comparable
SHARED = {"no": "", "each": " Each predicted class has a pick of its own.",
          "sqrt": " Each predicted class has a pick of its own; the picks are shared out by the square root of its "
                  "number of pictures."}


@dataclass(frozen=True)
class SPLIME(Analyzer):
    """SP-LIME: the few pictures whose explanations between them show most of what a model looks for in many.

    Every picture is explained by LIME on superpixels, with weights b_is (see `lime`). A superpixel of one picture is no
    feature of another; what makes pictures comparable are visual words: the superpixels of all pictures, each as the
    mean of the model's own activations over it, at length 1, are grouped by spherical k-means. W_ij = sum of b_is over
    the superpixels of picture i in word j, positive weights alone or positive and negative ones in two columns, divided
    by sum_s |b_is|; of each row the few largest stay, else any picture would cover everything. A word's importance is
    I_j = sqrt(sum_i |W_ij|), the coverage of a set V of pictures c(V) = sum of I_j over the words that any picture of V
    has. Pictures are picked greedily, of equal ones the first. To choose a segmentation and explain one picture with
    it is plain LIME and no pick, though it has been published under this name (arXiv:2408.12837).

    Superpixels count that, from the largest weight down, carry 90 % of a picture's absolute weights. A model without
    layers (ONNX, a callable) embeds a superpixel by what its output changes by when that superpixel alone is shown.

    Reads     one model, images (its first target), and the label maps if any are named
    Yields    for each segmentation the picked pictures with their words outlined, what each adds, the words with
              examples, and the coverage beside that of random picks; how far the picks of two segmentations agree
    Raises    XaiError if no picture can be explained: each has fewer than two superpixels or as many as pairs of masks,
              or the score is not finite or never depends on what is shown
    Cost      for each picture and segmentation samples - 1 forwards; without layers one more for each superpixel that
              counts, and one. About 0.3 MB a picture are kept, and 1 MB more while
              words are sought in 2,048 channels
    Reference Ribeiro, Singh, Guestrin 2016, "'Why Should I Trust You?': Explaining the Predictions of Any Classifier",
              arXiv:1602.04938, algorithm 2; visual words: Sivic and Zisserman 2003, "Video Google"
    """

    needs: ClassVar[frozenset[str]] = frozenset({"forward", "images"})
    shares: ClassVar[bool] = True  # only the first target is explained
    upper: ClassVar[bool] = True  # how many superpixels a picture has is not known before

    segmentation: str = param("slic,quickshift", "one or several, separated by commas: slic, quickshift, felzenszwalb, "
                                                 "watershed, grid, or a folder of label maps, one for each picture")
    segments: int = param(64, "about how many superpixels a picture (quickshift has its own number)", low=4)
    smooth: float = param(0.0, "Gaussian in pixels before the segmentation, for speckled pictures", low=0)
    samples: int = param(500, "masks a picture, the same for all", low=16)
    value: str = param("logit", "the score of a class: logit, probability or log_odds", choices=VALUES)
    baseline: str = param("mean", "what is seen in place of a superpixel: mean (its mean colour, which hides nothing "
                                  "of an even one), zero (the mean colour of all pictures), black, grey, white, a "
                                  "level, or blur")
    kernel_width: float = param(0.25, "of LIME's weights, in cosine distance", low=0.01)
    alpha: float = param(1.0, "penalty of LIME's ridge, on the sum of squares", low=0)
    embed: str = param("auto", "what a superpixel is to the model: layer (its mean activations), outputs (what it does "
                               "alone), auto: outputs only where the model cannot be looked into",
                       choices=("auto", "layer", "outputs"))
    layer: str = param("auto", "layer whose activations are averaged; auto: asked of the network")
    words: int = param(20, "how many visual words, at most one for five superpixels that count", low=2)
    restarts: int = param(10, "runs of k-means, of which the best counts", low=1)
    kept: int = param(5, "words that are kept of each picture, those of the largest weights", low=1)
    signs: str = param("positive", "positive: only what speaks for the class; both: each sign in a column of its own",
                       choices=("positive", "both"))
    picks: int = param(10, "how many pictures are picked in all, or of each class with by_class=each", low=1)
    by_class: str = param("no", "no: one pick over all pictures; sqrt: each predicted class by itself, the picks "
                                "shared out by the square root of its count; each: as many of every class",
                          choices=("no", "sqrt", "each"))

    def __post_init__(self) -> None:
        super().__post_init__()
        for how in self._hows():
            check_superpixels(how, self.baseline, self.name())

    def check(self, model: Model) -> None:
        """Raise XaiError where the model cannot do what was asked."""
        super().check(model)
        if self.embed == "layer":
            model.need("hooks")

    def passes(self, model: Model) -> Passes:
        """The most for one picture: its superpixels are fewer than the pairs of masks."""
        alone = 0 if self._layered(model) else self.samples // 2
        return Passes(forwards=len(self._hows()) * (forwards(self.samples, True) + alone))

    def run(self, subject: Subject) -> Iterator[AnyPanel]:
        """Everything that speaks of all pictures first, then each segmentation's picks and words."""
        model, images = subject.one_model(), subject.images
        if images is None or not len(images):
            raise error("the pictures", "given for a pick among them", "none", "Name a folder with --data")
        left = Left()
        seen = list(self._explained(model, subject, left))
        views = [view for number, how in enumerate(self._hows())
                 if (view := self._view(how, number, seen, subject.seed, left)) is not None]
        if not views:
            raise error("the pictures", "such that one of them can be explained", left.said(), "Take another "
                        "segmentation, more samples, signs=both, or a model whose score depends on what is shown")
        yield Text(key="comparable", title="What the pick rests on", text=self._comparable(model))
        if left.names:
            yield left.panel()
        yield _evidence.curves(views, DRAWS)
        yield _evidence.beside(views)
        for one, two in itertools.combinations(views, 2):
            yield _evidence.agreement(one, two, self.by_class != "no")
        for view in views:
            yield _evidence.picked(view, SHARED[self.by_class])
            yield _evidence.told(view, self.kept)
            yield from _evidence.pictures(view)
            yield from _evidence.strips(view)

    def _hows(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(how.strip() for how in self.segmentation.split(",")))

    def _layered(self, model: Model) -> bool:
        return self.embed == "layer" or (self.embed == "auto" and "hooks" in model.capabilities)

    def _comparable(self, model: Model) -> str:
        same = (f"whose mean activations in the layer {model.view(self.layer).name} point the same way"
                if self._layered(model) else "that change the model's outputs in the same way when shown alone (one "
                                             "forward for each of them, as the model is not asked for a layer)")
        return (f"What makes the pictures comparable here are visual words: groups of superpixels, from all pictures, "
                f"{same}. A superpixel by itself is no feature of another picture. The pick is the few pictures that "
                "between them show the words that weigh most in the most pictures. To choose a segmentation and "
                "explain one picture with it is plain LIME, not SP-LIME.")

    # --- each picture ---
    def _explained(self, model: Model, subject: Subject, left: Left) -> Iterator[Seen]:
        assert subject.images is not None
        for batch in model.prepare(subject.images, seed=subject.seed, memory_bytes=subject.memory_bytes,
                                   bad=left.add):
            if self._layered(model):
                batch.want(self.layer)
            bound = batch.bind(subject.targets[0])
            kinds = self._kinds(batch)
            features = batch.activations(self.layer) if self._layered(model) else None
            for i, image in enumerate(batch.images):
                sampler = Sampler(batch, i, [bound], self.value)
                parts = {how: one for how in self._hows()
                         if (one := self._parts(sampler, bound, how, features, left)) is not None}
                yield Seen(image.name, batch.hashes[i], bound.names[i], kinds[i], Packed.of(batch.seen[i]), parts)

    def _kinds(self, batch: Batch) -> list[int]:
        output = batch.output()
        if batch.model.head.kind in ("classes", "multi-label") and output.ndim == 2:
            return [int(c) for c in output.argmax(1)]
        if self.by_class != "no":
            raise error(f"{self.name()}.by_class", "no for a model that has no classes", repr(self.by_class),
                        "Leave it out: one pick is made over all pictures")
        return [-1] * len(batch)

    def _parts(self, sampler: Sampler, bound: Bound, how: str, features: Tensor | None, left: Left) -> Parts | None:
        """None where the picture cannot take part, which is noted."""
        try:
            return self._made(sampler, bound, how, features, left)
        except XaiError as problem:
            left.add(sampler.batch.images[sampler.i].name, f"{how}, {problem}")
            return None

    def _made(self, sampler: Sampler, bound: Bound, how: str, features: Tensor | None, left: Left) -> Parts | None:
        image = sampler.batch.images[sampler.i]
        labels = raster(superpixels(sampler, how, self.segments, self.smooth))
        n = int(labels.max()) + 1
        if n < 2 or n >= self.samples // 2:
            left.add(image.name, f"{how}, fewer than two superpixels" if n < 2 else
                     f"{how}, as many superpixels as the {self.samples // 2} pairs of masks or more")
            return None
        fill = hidden_by(sampler, labels, self.baseline, self.name())
        fit = explain_segments(sampler, labels, fill, _stream(how), samples=self.samples,
                               width=self.kernel_width, alpha=self.alpha)[0].fit
        ids, cells = self._counting(fit.weights), None
        if features is None:
            vectors = _outputs(sampler, bound, labels, fill, ids)
        else:
            vectors, cells = pooled(features[sampler.i], labels)[ids], _cells(features[sampler.i], labels)
        if not (fit.weights.isfinite().all() and vectors.isfinite().all()):
            left.add(image.name, f"{how}, the model gives what is no finite number")
            return None
        there = vectors.norm(dim=1) > 0
        ids, total = ids[there], fit.weights.abs().sum()
        return Parts(unit(vectors[there]).float(), fit.weights[ids] / total if len(ids) else fit.weights[ids], ids,
                     Packed.of(labels.numpy().astype(np.uint16)), n, cells, fit.r2_out)

    def _counting(self, weights: Tensor) -> Tensor:
        """The ids, in order, of the superpixels that count: of those whose weights, from the largest down, carry 90 %
        of all, the ones of the right sign. What is noise beside a weight of the other sign does not come in."""
        size = weights.abs()
        order = size.sort(descending=True, stable=True).indices
        before = size[order].cumsum(0) - size[order]
        taken = order[(before < CARRIED * size.sum()) & (size[order] > 0)]
        return (taken if self.signs == "both" else taken[weights[taken] > 0]).sort().values

    # --- all pictures ---
    def _view(self, how: str, number: int, seen: Sequence[Seen], seed: int, left: Left) -> View | None:
        """What comes of one segmentation; None, which is noted, where no picture of it has a superpixel that counts."""
        places = [i for i, one in enumerate(seen) if how in one.parts]
        members = [seen[i] for i in places]
        points = [one.parts[how].vectors for one in members]
        if not sum(map(len, points)):
            for one in members:
                left.add(one.name, f"{how}, nothing that is shown speaks for what is explained")
            return None
        named = [one.picture for one in members]
        most = max(2, sum(map(len, points)) // EACH)
        words = group(torch.cat([one for one in points if len(one)]), min(self.words, most),
                      seeds.generator(seed, f"{_stream(how)} words", *named), self.restarts)
        words, of, w = self._matrix(words, [one.parts[how].weights for one in members])
        kinds = sorted({one.kind for one in members}) if self.by_class != "no" else []
        groups = torch.tensor([kinds.index(one.kind) if kinds else 0 for one in members])
        counts = groups.bincount().tolist()
        budgets = ([min(self.picks, n) for n in counts] if self.by_class == "each" else shared_out(self.picks, counts))
        coverage = Coverage(w, groups)
        pick = coverage.greedy(budgets)
        curve = coverage.of(pick.rows)
        random = coverage.chance(budgets, pick.rows, DRAWS, seeds.generator(seed, f"{_stream(how)} random", *named))
        return View(how, number, members, places, words, of, w, coverage, pick,
                    curve + curve[-1:] * (sum(budgets) + 1 - len(curve)), random)

    def _matrix(self, words: Words, weights: Sequence[Tensor]) -> tuple[Words, list[Tensor], Tensor]:
        """The words numbered by importance, those of each row's superpixels, and w."""
        k, sides = len(words.centres), 2 if self.signs == "both" else 1
        sizes = [len(one) for one in weights]
        w = torch.zeros(len(weights), sides * k, dtype=torch.float64)
        for row, (mine, of) in enumerate(zip(weights, torch.split_with_sizes(words.of, sizes), strict=True)):
            w[row].index_add_(0, of + k * (mine < 0), mine)
        w = sparsified(w, self.kept)
        order = importance(w).view(sides, k).sum(0).sort(descending=True, stable=True).indices
        place = order.argsort()
        words = Words(words.centres[order], place[words.of], words.likeness, words.other)
        return (words, list(torch.split_with_sizes(words.of, sizes)),
                w.view(len(w), sides, k)[..., order].flatten(1))


def _stream(how: str) -> str:
    """Whose random numbers a segmentation has; where label maps lie has no say in them."""
    return f"sp_lime {how if how in METHODS else 'labels'}"


def _outputs(sampler: Sampler, bound: Bound, labels: Tensor, fill: Tensor, ids: Tensor) -> Tensor:
    """(p, V): what the outputs change by when of the picture only one of these superpixels is shown."""
    if not len(ids):
        return torch.zeros(0, 1, dtype=torch.float64)
    codes = torch.zeros(1 + len(ids), int(labels.max()) + 1, dtype=torch.uint8)
    codes[torch.arange(1, len(codes)), ids] = 1
    asked = _Whole(sampler.batch, sampler.i, [bound]).ask([codes], shown(sampler.x, fill, labels))
    found = torch.cat([answer.scores for answer in asked])
    return found[1:] - found[:1]


class _Whole(Sampler):
    """A sampler whose scores are all that the head says, in the mean over places where it has any."""

    def read(self, output: Tensor) -> Tensor:
        """(m, V), float64 on the CPU."""
        flat = output.flatten(2).mean(2) if output.ndim > 2 else output.view(len(output), -1)
        return flat.detach().cpu().double()


def _cells(features: Tensor, labels: Tensor) -> float:
    """How many cells of the layer's grid a segment covers, in the median."""
    area = labels.flatten().bincount().double().median()
    return float(area * features.shape[1] * features.shape[2] / labels.numel())
