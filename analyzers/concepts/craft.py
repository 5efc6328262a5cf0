"""CRAFT: concepts that a network has of its own, from crops of pictures, and what each is worth to its answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from analyzers.concepts._activations import need_finite, numbered_batches, side_by_side
from analyzers.concepts._crops import Crops, Grid, layers_of, looks, nearest_crops
from analyzers.concepts._nmf import Array, Factors, agreement, coefficients, factorise, need_positive
from xai import seeds
from xai.analyzer import Analyzer, param
from xai.batch import Batch
from xai.errors import XaiError, error
from xai.images import Images
from xai.layers import LayerView
from xai.model import Model
from xai.panels import AnyPanel, Axis, Cell, Column, Heatmap, Matrix, Number, Table, Text
from xai.pictures import picture_panels
from xai.result import Cost, Verdict
from xai.sobol_indices import designs, jansen
from xai.statistics import interval
from xai.streaming import Left
from xai.subject import Subject
from xai.tail import Above, Tail
from xai.targets import Target

CROPS, TRIED = 8, 8  # crops a strip; layers that are tried for one below
STABLE = 0.8
ROWS = 32  # maps at once above a layer


@dataclass(frozen=True)
class Worth:
    """Of one picture: its class in words, the total indices (k,), NaN where the score never changes, the score with all
    concepts there and as it is, and the concepts' maps (k, h, w)."""

    name: str
    index: Tensor
    decoded: float
    score: float
    maps: Array


@dataclass(frozen=True)
class CRAFT(Analyzer):
    """CRAFT: concepts that the network itself has, found in crops of pictures, and what each is worth to its answer.

    Crops of all pictures, made as large as the input, give mean activations A of a layer; A ~ U W, none negative; each
    row of W is a concept. In a picture the concepts' maps U(h, w) are the non-negative coefficients of the activations
    at each place. A concept's worth is its total Sobol index: masks m in [0, 1]^k multiply U, W decodes, and the rest
    of the network gives the score; ST_j = E[(f(m) - f(m'))^2] / (2 Var f), m' = m but for m_j; the mean over pictures.
    They sum to 1 where concepts act alone, and to more where together. What A - U W leaves out is dropped in decoding:
    the page says how far that moves the score. With few points the index ranks, it does not measure.

    `recurse` splits the worthiest concepts: of the crops that have most of one, the activations of a `lower` layer are
    factorised again. The pictures should be of one class, or of those that are compared.

    Reads     one model, images (its first target)
    Yields    each concept's crops, its worth, in all and by class; for the first pictures the maps of the worthiest
    Raises    XaiError if the layer's activations are negative somewhere, zero everywhere or not finite
    Cost      one forward a crop (16 a picture at the defaults); for each explained picture two and
              samples * (concepts + 2) + 1 of the part above the layer. The crops' mean activations are kept
    Reference Fel, Picard, Bethune, Boissin, Vigouroux, Colin, Cadene, Serre 2023, "CRAFT: Concept Recursive Activation
              FacTorization for Explainability", arXiv:2211.10154, section 3; Jansen's estimator as in `sobol`
    """

    needs: ClassVar[frozenset[str]] = frozenset({"hooks", "images"})
    upper: ClassVar[bool] = True
    shares: ClassVar[bool] = True

    layer: str = param("auto", "layer that is factorised, after a ReLU; auto: asked of the network")
    concepts: int = param(10, "how many concepts", low=2)
    patch: int = param(0, "side of a crop in pixels of the input; 0: 2/7 of the shorter side", low=0)
    samples: int = param(32, "points of each design of the Sobol indices, a power of two", low=16)
    pictures: int = param(8, "of how many pictures, the first, the concepts' worth and maps are found", low=1)
    shown: int = param(3, "concepts whose maps are shown of a picture, the worthiest in it", low=1)
    recurse: int = param(0, "how many concepts, the worthiest, are split into concepts of a lower layer", low=0)
    parts: int = param(3, "concepts of the lower layer that one is split into", low=2)
    lower: str = param("auto", "the lower layer; auto: the last one below that has more places and is not negative")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples & (self.samples - 1):
            raise error("craft.samples", "a power of two", self.samples, "A Sobol sequence is even only then; take 32")

    def cost(self, subject: Subject) -> Cost:
        """Crops of all pictures; the part above the layer for the explained ones."""
        pictures, model = len(subject.images or ()), subject.one_model()
        crops = len(Grid.of(model.preprocessing.size, self.patch).places)
        each = 4 + self.samples * (self.concepts + 2)
        return Cost(forwards=pictures * crops + min(pictures, self.pictures) * each + bool(self.recurse), backwards=0)

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """Crops, factors, worth, then concept by concept and picture by picture."""
        model, images = subject.one_model(), subject.images
        if images is None or not len(images):
            raise error("the pictures", "given for CRAFT", "none", "Name a folder with --data")
        view, left, crops = model.view(self.layer), Left(), Crops()
        grid = Grid.of(model.preprocessing.size, self.patch)
        below: LayerView | None = None
        explained: list[Batch] = []
        for batch, numbers in numbered_batches(subject, images, left):
            if self.recurse and below is None:
                below = self._below(model, view, batch)
            crops.add(batch, numbers, grid, [view] + ([below] if below else []))
            room = self.pictures - sum(map(len, explained))
            if room > 0:
                explained.append(batch.choose(range(min(room, len(batch)))))
        if not crops.where:
            raise XaiError(left.first)
        values = need_finite(crops.of(view), f"the activations of {view.name}", model)
        need_positive(values, view.name)
        seed = int(torch.randint(2**31, (), generator=seeds.generator(subject.seed, "craft")))
        factors, other = (factorise(values, self.concepts, seed, start) for start in ("nndsvda", "random"))
        worth = [self._worth(batch, subject.targets[0], view, factors, seed) for batch in explained]
        everyone = [one for part in worth for one in part]
        order = _ranked(everyone)
        yield from self._told(view, len(values), factors, everyone, order, other)
        for rank, j in enumerate(order, 1):
            yield _strip(model, images, crops.where, grid, factors.u[:, j], str(rank), f"Concept {rank}")
        yield from self._split(model, images, crops, grid, factors, order, below, seed)
        for batch, part in zip(explained, worth, strict=True):
            yield from self._pictured(batch, part, order)
        if left.pictures:
            yield left.panel()

    # --- worth ---
    def _worth(self, batch: Batch, target: Target, view: LayerView, factors: Factors, seed: int) -> list[Worth]:
        """Of each picture, by itself: its maps, and what masks of the concepts do to its score."""
        bound, tail = batch.bind(target), Tail.of(batch.model, view)
        found = []
        for i, own in enumerate(batch.singles()):
            (maps,) = layers_of(batch.model, [view], own.inputs)
            u = coefficients(maps[0], factors.w)
            above, one = tail.at(batch.model, own.inputs), bound.take([i])
            bank = torch.from_numpy(factors.w).to(maps)
            parts = torch.from_numpy(u).to(maps)

            def score(masks: Tensor, above: Above = above, parts: Tensor = parts, bank: Tensor = bank, i: int = i
                      ) -> Tensor:
                rows = torch.einsum("mj,jhw,jk->mkhw", masks.to(parts), parts, bank)
                return bound.take([i] * len(rows))(above(rows)).double().cpu()

            points = torch.cat(list(designs(len(u), self.samples, seed)))
            scores = torch.cat([score(some) for some in torch.split(points, ROWS)])
            index, _, variance = jansen(scores[:, None], self.samples)
            whole = float(score(torch.ones(1, len(u)))[0])
            index = torch.where(variance > 0, index, torch.nan)[:, 0]
            found.append(Worth(one.names[0], index, whole, float(one(own.output())[0]), u))
        return found

    # --- panels ---
    def _told(self, view: LayerView, crops: int, factors: Factors, worth: Sequence[Worth], order: Sequence[int],
              other: Factors) -> Iterator[AnyPanel | Verdict]:
        yield Text(key="found", title="Where the concepts come from", text=(
            f"{crops} crops, layer {view.name} ({view.channels} channels), {len(factors.w)} concepts. The factors "
            f"leave out {100 * factors.error:.0f} % of the activations (of their norm)."
            f"{'' if factors.ended else ' The factorisation did not settle within its steps.'}"))
        yield _table(worth, factors, order)
        if len({one.name for one in worth}) > 1:
            yield _by_class(worth, order)
        off = float(np.mean([abs(one.decoded - one.score) for one in worth]))
        yield Number(key="dropped", title="What decoding changes the score by, in the mean", value=off,
                     note="The score with every concept there, U W in place of A, beside the score itself: the mean of "
                          f"the absolute differences; the scores' own mean is {np.mean([w.score for w in worth]):.3g}.")
        alike = agreement(factors.w, other.w)
        yield Verdict(name="stable", value=alike, threshold=STABLE, passed=alike >= STABLE, sentence=(
            f"Factors from another start agree with these to {alike:.2f} (the mean cosine of concepts, matched one to "
            "one)."), advice="" if alike >= STABLE else "Take fewer concepts or more pictures")

    def _pictured(self, batch: Batch, worth: Sequence[Worth], order: Sequence[int]) -> Iterator[AnyPanel]:
        page = picture_panels(batch)
        for one, picture in zip(worth, batch.hashes, strict=True):
            yield from (panel for panel in page if panel.picture == picture)
            known = torch.nan_to_num(one.index, nan=-1.0)
            for j in known.sort(descending=True, stable=True).indices.tolist()[: self.shown]:
                rank, value = list(order).index(j) + 1, float(one.index[j])
                said = "" if value != value else f" Its total index here is {value:.2f}."
                yield Heatmap(key=f"concept_{rank}", title=f"Concept {rank}", picture=picture, unit="coefficient",
                              values=one.maps[j].astype(np.float32),
                              note=f"Where it is, for {one.name}.{said}")

    def _split(self, model: Model, images: Images, crops: Crops, grid: Grid, factors: Factors, order: Sequence[int],
               below: LayerView | None, seed: int) -> Iterator[AnyPanel]:
        """Of the crops that have most of a concept, factors of the lower layer."""
        if not self.recurse:
            return
        if below is None:
            yield Text(key="split", title="No lower layer", tone="warning", text="No layer below has more places and "
                       "activations that are nowhere negative: the concepts are not split. Name one with lower.")
            return
        lower = need_finite(crops.of(below), f"the activations of {below.name}", model)
        need_positive(lower, below.name)
        for rank, j in enumerate(order[: self.recurse], 1):
            weights = factors.u[:, j]
            rows = np.flatnonzero(weights >= np.quantile(weights, 0.9))
            if len(rows) < self.parts or not lower[rows].any():
                continue
            found = factorise(lower[rows], self.parts, seed)
            where = [crops.where[i] for i in rows]
            for part in range(len(found.w)):
                yield _strip(model, images, where, grid, found.u[:, part], f"{rank}_{part + 1}",
                             f"Concept {rank}, part {part + 1} (layer {below.name})")

    def _below(self, model: Model, view: LayerView, batch: Batch) -> LayerView | None:
        """The lower layer, asked of the crops of one picture."""
        if self.lower != "auto":
            return model.view(self.lower)
        before = []
        for one in model.layers():
            if one.name == view.name:
                break
            before.append(one)
        wide = [one for one in before if one.grid[0] * one.grid[1] > view.grid[0] * view.grid[1]][-TRIED:]
        if not wide:
            return None
        maps = layers_of(model, wide, batch.inputs[:1])
        return next((one for one, own in list(zip(wide, maps, strict=True))[::-1] if float(own.min()) >= 0), None)


def _mean(worth: Sequence[Worth]) -> Tensor:
    """(k,) over the pictures whose score changes; NaN where there is none."""
    return torch.stack([one.index for one in worth]).nanmean(0)


def _ranked(worth: Sequence[Worth]) -> list[int]:
    """The concepts, the worthiest first."""
    found: list[int] = torch.nan_to_num(_mean(worth), nan=-1.0).sort(descending=True, stable=True).indices.tolist()
    return found


def _table(worth: Sequence[Worth], factors: Factors, order: Sequence[int]) -> Table:
    every = torch.stack([one.index for one in worth])
    rows: list[tuple[Cell, ...]] = []
    for rank, j in enumerate(order, 1):
        known = every[:, j][~every[:, j].isnan()]
        low, high = interval(known)
        rows.append((rank, _number(float(known.mean()) if len(known) else float("nan")), _number(low), _number(high),
                     float((factors.u[:, j] > 1e-9).mean())))
    return Table(key="worth", title="What each concept is worth", rows=tuple(rows), columns=(
        Column("concept"), Column("total index"), Column("from"), Column("to"), Column("of the crops", "probability")),
        note=f"Mean of {len(worth)} pictures, and its 95 % interval (bootstrap). The index is the share of the score's "
             "variance that a concept has a part in, when all come and go; it says that it matters, not for or "
             "against what.")


def _by_class(worth: Sequence[Worth], order: Sequence[int]) -> Matrix:
    names = tuple(dict.fromkeys(one.name for one in worth))
    means = [_mean([one for one in worth if one.name == name])[list(order)] for name in names]
    return Matrix(key="by_class", title="Worth by what is explained", columns=names, view="relu",
                  values=torch.nan_to_num(torch.stack(means, 1)).float().numpy().round(3),
                  rows=tuple(f"concept {rank}" for rank in range(1, len(order) + 1)),
                  axes=(Axis("concept"), Axis("explained")))


def _strip(model: Model, images: Images, where: Sequence[tuple[int, int, int]], grid: Grid, weights: Array, key: str,
           title: str) -> AnyPanel:
    chosen = nearest_crops(weights, where, CROPS)
    places = [where[i] for i in chosen]
    names = ", ".join(dict.fromkeys(images.names[number] for number, _, _ in places))
    return side_by_side(looks(model, images, places, grid.side), key=f"crops_{key}", title=title,
                        note=f"The crops that have most of it, one a picture as far as there are so many: {names}.")


def _number(value: float) -> float | None:
    return None if value != value else value
