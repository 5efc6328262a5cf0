"""Disagreement: whether methods that explain the same score point at the same places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from xai.analyzer import Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.controls import named
from xai.errors import XaiError, error
from xai.metric import ROWS, Case, Metric, Score, Scored, case_of, total
from xai.model import Model
from xai.panels import AnyPanel, Axis, Column, Matrix, Table, Text
from xai.result import Verdict
from xai.statistics import interval, ranks
from xai.subject import Subject


@dataclass(frozen=True)
class Disagreement(Metric):
    """Disagreement: how far several methods agree about the same score.

    For each two methods and picture, on what they show, enlarged to the input's size: `rank`, the rank correlation of
    all pixels; `overlap`, the share of the `top` most relevant pixels of one that are among those of the other (a
    share `top` by chance); `signs`, the share of them that are in both with the same sign in the raw maps, not defined
    where one of the two raw maps has no negative value. Methods that agree may all be wrong.

    Reads     one model, images
    Yields    a matrix between methods for each measure, and every pair's mean with its interval
    Raises    XaiError if fewer than two methods can be run
    Cost      the methods themselves
    Reference Krishna et al. 2022, "The disagreement problem in explainable machine learning: a practitioner's
              perspective", arXiv:2202.01602, section 4 (feature agreement, sign agreement, rank correlation)
    """

    of: str = param("gradcam,integrated_gradients,saliency", "two or more attributions separated by commas; parameters "
                    "as smoothgrad(samples=20)")
    top: float = param(0.1, "share of the pixels that counts as most relevant", low=0.001, high=1)

    group: ClassVar[str] = "Robustness"
    chance: ClassVar[bool] = False
    scores: ClassVar[dict[str, Score]] = {
        "rank": Score("rank correlation of all pixels"),
        "overlap": Score("share of the most relevant pixels that both name"),
        "signs": Score("share of the most relevant pixels that both name with the same sign")}

    def passes(self, model: Model) -> Passes:
        """The maps themselves; no control is asked."""
        return total([one.passes(model) for one in self.judged()])

    def check(self, model: Model) -> None:
        """Raise XaiError where there are not two methods."""
        super().check(model)
        if len(self.judged()) < 2:
            raise error("what is compared", "two attributions or more", named(self.judged()[0]),
                        "For example --set of=gradcam,rise")

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """Every pair's agreement, picture by picture and in the mean."""
        model, images = subject.one_model(), subject.images
        if images is None:
            raise error("the pictures", "given for a metric", "none", "Name a picture, a folder or sample:chelsea")
        pairs = _Pairs(self, list(self.judged()))
        for batch in model.prepare(images, seed=subject.seed, memory_bytes=subject.memory_bytes):
            pairs.add(batch, subject)
        yield from pairs.panels(subject.seed)

    def seen(self, case: Case) -> Seen:
        """What is compared of the maps of one method, worked out once for all pairs."""
        count, size = max(1, round(self.top * case.shown[0].numel())), case.shown.shape[-2:]
        placed = torch.stack([ranks(one.flatten()) for one in case.shown])
        placed = placed - placed.mean(1, keepdim=True)
        top = torch.stack([set_of(case, i, count) for i in range(len(case.shown))])
        signs = torch.stack([_enlarged(one, size).sign().flatten() for one in case.raw])
        return Seen(placed, top, signs, (case.raw < 0).flatten(1).any(1), case.sound(), count)

    def between(self, one: Seen, two: Seen) -> Scored:
        """How far the maps of two methods agree on each picture of their batch; NaN where a map is flat or not finite.
        """
        both = one.top & two.top
        same = (both & (one.signs == two.signs)).sum(1).double() / one.count
        size = (one.ranks.square().sum(1) * two.ranks.square().sum(1)).sqrt()  # 0 where a map is the same everywhere
        found = {"rank": (one.ranks * two.ranks).sum(1) / size, "overlap": both.sum(1).double() / one.count,
                 "signs": same.masked_fill(~(one.signed & two.signed), torch.nan)}
        good = one.good & two.good
        return Scored({name: values.masked_fill(~good, torch.nan) for name, values in found.items()})


@dataclass(frozen=True)
class Seen:
    """Of the maps of one method: centred ranks, (n, H * W); the top pixels and the signs, alike; which maps
    have negative values, and which are maps at all, (n,); how many pixels are the top."""

    ranks: Tensor
    top: Tensor
    signs: Tensor
    signed: Tensor
    good: Tensor
    count: int


def set_of(case: Case, i: int, count: int) -> Tensor:
    """(H * W,) bool: the most relevant pixels of picture i; ties at the edge of the set are broken by seeded chance."""
    flat = case.shown[i].flatten()
    chosen = flat >= flat.topk(count).values[-1]
    if int(chosen.sum()) == count:
        return chosen
    chosen = torch.zeros_like(chosen)
    chosen[case.order(i, f"disagreement {named(case.method)}")[:count]] = True
    return chosen


def _enlarged(values: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(values.nan_to_num(0, 0, 0)[None, None], size, mode="bilinear", align_corners=False)[0, 0]


@dataclass
class _Pairs:
    """What every two methods had in common, picture by picture."""

    metric: Disagreement
    methods: list[Attribution]
    found: dict[tuple[int, int], dict[str, list[Tensor]]] = field(default_factory=dict)
    problems: dict[int, XaiError] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    unsound: Counter[int] = field(default_factory=Counter)

    def add(self, batch: Batch, subject: Subject) -> None:
        """Make all maps of a batch and compare them."""
        self.pictures += [image.name for image in batch.images]
        for k, method in enumerate(self.methods):
            try:
                method.check(batch.model)
                batch.want(*method.layers())
            except XaiError as problem:
                self.problems.setdefault(k, problem)
        bound, cases = batch.bind(subject.targets[0]), dict[int, Case]()
        for k, method in enumerate(self.methods):
            if k not in self.problems:
                try:
                    cases[k] = case_of(method, batch, bound)
                    self.unsound[k] += int((~cases[k].sound()).sum())
                except XaiError as problem:
                    self.problems[k] = problem
        if len(self.methods) - len(self.problems) < 2:
            raise next(iter(self.problems.values()))
        seen = {k: self.metric.seen(case) for k, case in cases.items()}
        for pair in combinations(sorted(cases), 2):
            for name, values in self.metric.between(*(seen[k] for k in pair)).values.items():
                self.found.setdefault(pair, {}).setdefault(name, []).append(values)

    def panels(self, seed: int) -> Iterator[AnyPanel | Verdict]:
        """Matrices, the pairs, the pictures."""
        labels = [named(method) for method in self.methods]
        kept = {pair: {name: torch.cat(values) for name, values in by_name.items()}
                for pair, by_name in self.found.items() if not set(pair) & set(self.problems)}
        whole = [k for k in range(len(labels)) if k not in self.problems]
        rows = []
        for name, what in self.metric.scores.items():
            values = torch.eye(len(labels)).masked_fill(torch.eye(len(labels)) == 0, torch.nan)
            for (a, b), by_name in kept.items():
                known = by_name[name][torch.isfinite(by_name[name])]
                values[a, b] = values[b, a] = known.mean() if len(known) else torch.nan
                low, high = interval(known, seed)
                rows.append((labels[a], labels[b], name, *map(_plain, (float(values[a, b]), low, high)), len(known)))
            yield Matrix(key=name, title=what.says.capitalize(), values=values[whole][:, whole].numpy(),
                         rows=tuple(labels[k] for k in whole), columns=tuple(labels[k] for k in whole),
                         note=f"Means over {len(self.pictures)} pictures.", axes=(Axis("method"), Axis("method")))
        yield Table(key="pairs", title="Agreement of every two methods", rows=tuple(rows), columns=tuple(
            Column(word) for word in ("method", "other", "score", "mean", "low", "high", "pictures")),
            note=f"Means with 95 % intervals (bootstrap over pictures). By chance {self.metric.top:.0%} overlap.")
        if len(kept) * len(self.pictures) <= ROWS:
            yield Table(key="by_picture", title="Picture by picture", columns=tuple(
                Column(word) for word in ("picture", "method", "other", *self.metric.scores)), rows=tuple(
                (picture, labels[a], labels[b], *(_plain(float(by_name[name][i])) for name in self.metric.scores))
                for i, picture in enumerate(self.pictures) for (a, b), by_name in kept.items()))
        yield from (self._verdict(k, labels[k]) for k in whole)
        yield from (Text(key=f"problem {labels[k]}", title=labels[k], tone="warning", text=str(problem))
                    for k, problem in self.problems.items())

    def _verdict(self, k: int, label: str) -> Verdict:
        n, lost = len(self.pictures), self.unsound[k]
        return Verdict(name="scored", value=float(n - lost), threshold=float(n), passed=not lost, sentence=(
            f"{label}: {lost} of {n} maps are not finite or flat and are compared with nothing." if lost else
            f"All {n} maps of {label} can be compared."),
            advice="Look at those pictures with `xai explain`." if lost else "")


def _plain(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None
