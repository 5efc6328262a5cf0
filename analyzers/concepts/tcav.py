"""TCAV: whether a concept that is shown by example matters to a class, beside what random examples would score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from analyzers.concepts import _cav
from analyzers.concepts._activations import flat, gram, in_order, need_finite, side_by_side
from analyzers.concepts._cav import Tested
from analyzers.concepts._rendered import CONCEPTS, rendered
from xai import seeds
from xai.analyzer import Analyzer, param
from xai.batch import Batch
from xai.errors import XaiError, error
from xai.images import Images, load_images
from xai.panels import AnyPanel, Axis, Cell, Column, Histogram, Matrix, Table, Text
from xai.result import Cost, Verdict
from xai.streaming import Left
from xai.subject import Subject
from xai.targets import Bound, find_class

SHOWN = 8  # pictures of a set that the page shows
LEAST = 5  # pictures of a concept
FAR = 3  # sets that a pool holds at least


@dataclass(frozen=True)
class Pictures:
    """A set of pictures as the layer gives it: (n, D), and the first of them as they were seen."""

    values: Tensor
    seen: list[np.ndarray[Any, np.dtype[Any]]]


@dataclass(frozen=True)
class Row:
    """A class, a concept, how many pictures of the class, and what came of it."""

    group: str
    concept: str
    pictures: int
    found: Tested


@dataclass(frozen=True)
class TCAV(Analyzer):
    """TCAV: whether a concept matters to a class, shown by example pictures and tested against random ones.

    v is the unit normal, towards the concept, of a linear classifier (ridge) of a layer's activations of the concept's
    pictures against those of random ones; S(x) = d logit_c / d activations . v; TCAV = the share of the class's
    pictures with S > 0. Each concept meets `runs` random sets, and its TCAV is their mean. `nulls` random sets are put
    in the concept's place, each against as many others. p is the rank of the concept among them by |TCAV - 1/2|, equal
    ones by |S times how far apart the sets are on held-out pictures|, times the number of tests (Bonferroni). The
    t-test of the paper, which takes the runs of one set for independent, is shown beside it: random sets fail it far
    more often than it says (examples/tables/tcav.md).

    A concept is a folder of pictures (anything that `--data` takes), with random pictures from --data or `random`, or a
    rendered one: stripes, dots, checks, blobs, or red, yellow, green, cyan, blue, magenta, each with random pictures of
    the same kind in which that property is drawn too. Where the linear classifier is no better than chance on held-out
    pictures nothing is reported. Above the layer nothing but a linear map: S has one sign for all pictures.

    Reads     one model, images (those of the classes that are explained), folders of examples
    Yields    for each class and concept TCAV, the range of random concepts, the accuracy of the classifier, p
    Raises    XaiError if a concept has fewer than 5 pictures, the random pictures are too few, the gradient does not
              reach the layer or is zero, or activations are not finite
    Cost      one forward and one backward a picture; one forward for each picture of the concepts and of the random
              ones. Activations of all of these are kept, 4 bytes a number
    Reference Kim, Wattenberg, Gilmer, Cai, Wexler, Viegas, Sayres 2018, "Interpretability Beyond Feature Attribution:
              Quantitative Testing with Concept Activation Vectors", arXiv:1711.11279, section 3
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradients", "hooks", "images"})
    upper: ClassVar[bool] = True
    shares: ClassVar[bool] = True  # only the first target is explained

    concept: str = param("stripes,red", "one or several, separated by commas: rendered ones (stripes, dots, checks, "
                                        "blobs, red, yellow, green, cyan, blue, magenta) or folders of pictures")
    random: str = param("auto", "where random pictures come from: a folder, data (--data), rendered; auto: rendered "
                                "for rendered concepts, data for folders")
    layer: str = param("auto", "layer whose activations are used; auto: asked of the network")
    pooling: str = param("flat", "what a picture is: flat, its activations at every place; mean, the mean over places",
                         choices=("flat", "mean"))
    size: int = param(20, "pictures of a concept and of a random set, at most", low=LEAST)
    pool: int = param(200, "random pictures that sets are drawn from", low=FAR * LEAST)
    runs: int = param(20, "random sets that each concept meets", low=2)
    nulls: int = param(199, "random sets that are put in the concept's place", low=19)
    pictures: int = param(100, "pictures of the classes, at most, in an order that the seed draws", low=1)
    classes: int = param(3, "classes that are tested, those with most pictures", low=1)
    level: float = param(0.05, "level of the test, of all tests together", low=0.0001, high=0.5)

    def cost(self, subject: Subject) -> Cost:
        """The pictures of the data set, of the concepts and of the pools."""
        concepts, own = self._concepts(), len(subject.images or ())
        sources = {self._source(concept) for concept in concepts}
        looked = own if self._fixed(subject) else min(own, self.pictures)
        return Cost(forwards=looked + len(concepts) * self.size + len(sources) * self.pool, backwards=looked)

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """The classes' gradients, then each concept beside random ones."""
        images, left = subject.images, Left()
        if images is None or not len(images):
            raise error("the pictures", "given for TCAV", "none", "Name a folder with --data")
        gradients, groups = self._gradients(subject, images, left)
        pools: dict[tuple[str, int], Pictures] = {}
        nulls: dict[tuple[str, int], _cav.Fits] = {}
        rows: list[Row] = []
        strips: list[AnyPanel] = []
        checks: list[Verdict] = []
        for concept in self._concepts():
            own = self._examples(subject, concept, left)
            source, size = self._source(concept), len(own.values)
            if (source, 0) not in pools:
                pools[source, 0] = self._pool(subject, images, source, left)
                strips.append(_strip(f"random_{len(pools)}", f"Random pictures ({_word(source)})", pools[source, 0]))
            strips.append(_strip(f"concept_{len(strips)}", f"Examples of {_word(concept)}", own))
            mine, null = self._fits(subject, own.values, pools[source, 0].values, gradients, source, nulls, size)
            for group, columns in groups.items():
                some, others = (_cav.Fits(one.scores[:, columns], one.accuracy, one.apart) for one in (mine, null))
                rows.append(Row(group, _word(concept), len(columns), _cav.tested(some, others, self.nulls)))
            checks.append(_check(rows[-1]))
        yield self._told(subject, gradients)
        yield self._table(rows)
        yield _matrix(rows)
        yield from strips
        yield from _histograms(rows)
        yield from checks
        if left.pictures:
            yield left.panel()

    # --- what is compared ---
    def _concepts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(word.strip() for word in self.concept.split(",") if word.strip())) or ("stripes",)

    def _source(self, concept: str) -> str:
        return ("rendered" if concept in CONCEPTS else "data") if self.random == "auto" else self.random

    def _fixed(self, subject: Subject) -> bool:
        """Whether the target is one class, so that pictures of other classes are passed by."""
        text = subject.targets[0].text
        return text.startswith("class:") or find_class(text, subject.one_model().labels, 1 << 30) is not None

    def _gradients(self, subject: Subject, images: Images, left: Left) -> tuple[Tensor, dict[str, list[int]]]:
        """(m, D), and the rows of each class that is tested."""
        order = torch.randperm(len(images), generator=seeds.generator(subject.seed, "tcav pictures")).tolist()
        found: list[Tensor] = []
        names: list[str] = []
        fixed = self._fixed(subject)
        for batch in in_order(subject, images, order if fixed else order[: self.pictures], left):
            batch.want(self.layer)
            bound = batch.bind(subject.targets[0])
            rows = _of_class(batch, bound) if fixed else list(range(len(batch)))
            if rows:
                gradient = flat(batch.gradients(self.layer, bound), self.pooling, gradient=True)[rows]
                found.append(need_finite(gradient, "the gradients at the layer", batch.model))
                names += [bound.names[i] for i in rows]
            if len(names) >= self.pictures:
                break
        if not names:
            raise XaiError(left.first) if left.pictures else error(
                "the pictures", f"such that one is of {subject.targets[0].text}", "none", "Name others with --data")
        gradients = torch.cat(found)[: self.pictures]
        if not gradients.any():
            raise error("the target", "one that depends on the layer", "a gradient of 0 for every picture",
                        "Name another layer with --layer, or take other weights")
        members: dict[str, list[int]] = {}
        for i, name in enumerate(names[: self.pictures]):
            members.setdefault(name, []).append(i)
        most = sorted(members, key=lambda name: (-len(members[name]), name))[: self.classes]
        return gradients, {name: members[name] for name in most}

    def _examples(self, subject: Subject, concept: str, left: Left) -> Pictures:
        if concept in CONCEPTS:
            images = self._rendered(subject, self.size, concept)
        else:
            images = load_images(concept)
        found = self._seen(subject, images, list(range(min(self.size, len(images)))), left)
        if len(found.values) < LEAST:
            raise error(f"the concept {_word(concept)}", f"at least {LEAST} pictures that can be read",
                        len(found.values), "Name a folder with more of them")
        return found

    def _pool(self, subject: Subject, images: Images, source: str, left: Left) -> Pictures:
        if source == "rendered":
            images = self._rendered(subject, self.pool, "")
        elif source != "data":
            images = load_images(source)
        generator = seeds.generator(subject.seed, "tcav pool")
        order = torch.randperm(len(images), generator=generator)[: self.pool].tolist()
        return self._seen(subject, images, order, left)

    def _rendered(self, subject: Subject, count: int, concept: str) -> Images:
        seed = int(torch.randint(2**31, (), generator=seeds.generator(subject.seed, "tcav rendered", concept)))
        return rendered(count, subject.one_model().preprocessing.size, seed, concept)

    def _seen(self, subject: Subject, images: Images, order: list[int], left: Left) -> Pictures:
        values: list[Tensor] = []
        seen: list[np.ndarray[Any, np.dtype[Any]]] = []
        for batch in in_order(subject, images, order, left):
            values.append(need_finite(flat(batch.activations(self.layer), self.pooling), "the activations of the layer",
                                      batch.model))
            seen += batch.seen[: SHOWN - len(seen)]
        return Pictures(torch.cat(values) if values else torch.zeros(0, 1), seen)

    def _fits(self, subject: Subject, own: Tensor, pool: Tensor, gradients: Tensor, source: str,
              nulls: dict[tuple[str, int], _cav.Fits], size: int) -> tuple[_cav.Fits, _cav.Fits]:
        """The concept against `runs` random sets, and random sets in its place."""
        if len(pool) < FAR * size:
            raise error("the random pictures", f"at least {FAR * size}, {FAR} sets of {size}", len(pool),
                        "Name more with --data or random=FOLDER, or lower size")
        centre = pool.mean(0)
        values = torch.cat([pool, own]) - centre
        products, inner = gram(values, gradients), gram(values, values)
        counter, sets, against = _cav.pairs(len(pool), self.runs, size, self.nulls,
                                            seeds.generator(subject.seed, "tcav sets", str(size)))
        concept = torch.arange(len(pool), len(values)).expand(self.runs, -1)
        if (source, size) not in nulls:
            nulls[source, size] = _cav.fit(inner, products, sets.repeat_interleave(self.runs, 0), against)
        return _cav.fit(inner, products, concept, counter), nulls[source, size]

    # --- what came of it ---
    def _told(self, subject: Subject, gradients: Tensor) -> Text:
        view = subject.one_model().view(self.layer)
        return Text(key="compared", title="What is compared", text=(
            f"Layer {view.name}, {'every place' if self.pooling == 'flat' else 'the mean over places'}; "
            f"{len(gradients)} pictures. Each concept meets {self.runs} random sets of as many pictures, and "
            f"{self.nulls} random sets stand in its place. A concept differs where few of those are as far from 1/2: "
            "that it matters to the class, for (TCAV above 1/2) or against (below). It does not say how much."))

    def _table(self, rows: list[Row]) -> Table:
        cells: list[tuple[Cell, ...]] = []
        for row in rows:
            one, m = row.found, len(rows)
            low, high = torch.quantile(one.null, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
            p = min(1.0, m * one.p) if _better(one) else None
            differs = "at chance" if p is None else "yes" if p <= self.level else "no"
            cells.append((row.group, row.concept, row.pictures, one.accuracy, one.tcav if _better(one) else None, low,
                          high, p, differs, min(1.0, m * one.published)))
        return Table(key="tcav", title="Concepts beside random ones", rows=tuple(cells), columns=(
            Column("class"), Column("concept"), Column("pictures"), Column("accuracy", "probability"),
            Column("TCAV", "probability"), Column("of random, from"), Column("to"), Column("p"),
            Column(f"differs at {self.level:g}"), Column("p of the t-test over runs")), note=(
                f"p, corrected for {len(rows)} tests, of a set among {self.nulls} random ones; the least it can be is "
                f"{min(1.0, len(rows) / (self.nulls + 1)):.2g}. From, to: where TCAV of 95 % of the random sets "
                "lies. The t-test over runs is the published one; it takes runs that share the concept's pictures for "
                "independent and is too sure. No TCAV is shown where the classifier is not better than chance."))


def _better(one: Tested) -> bool:
    return one.accuracy > 0.5


def _check(row: Row) -> Verdict:
    """Whether the layer tells the concept from random pictures at all."""
    share, better = row.found.accuracy, _better(row.found)
    return Verdict(name=f"{row.concept} is told apart", value=share, threshold=0.5, passed=better, sentence=(
        f"A linear classifier of the layer tells {row.concept} from random pictures in {100 * share:.0f} % of held-out "
        "ones."), advice="" if better else "It is at chance: no TCAV. Take more pictures or another layer")


def _of_class(batch: Batch, bound: Bound) -> list[int]:
    """The rows that are of the target's class: by their label, else by what the network says."""
    assert bound.classes is not None
    said, found = batch.output().argmax(1).tolist(), []
    for i, (truth, wanted) in enumerate(zip(batch.truth, bound.classes.tolist(), strict=True)):
        text = f"class:{truth}" if isinstance(truth, int) else truth
        known = find_class(text, batch.model.labels, batch.output().shape[1]) if text is not None else None
        found += [i] if (said[i] if known is None else known) == wanted else []
    return found


def _word(source: str) -> str:
    return source.rstrip("/").rpartition("/")[2] or source


def _strip(key: str, title: str, pictures: Pictures) -> AnyPanel:
    return side_by_side(pictures.seen, key=key, title=title, note=f"The first {len(pictures.seen)} of "
                                                                  f"{len(pictures.values)}, as the network saw them.")


def _matrix(rows: list[Row]) -> Matrix:
    groups, concepts = (tuple(dict.fromkeys(one)) for one in ([r.group for r in rows], [r.concept for r in rows]))
    values = np.full((len(concepts), len(groups)), 0.0, dtype=np.float32)
    for row in rows:
        values[concepts.index(row.concept), groups.index(row.group)] = row.found.tcav - 0.5
    return Matrix(key="map", title="TCAV - 1/2: for (above 0) or against", values=values, rows=concepts, columns=groups,
                  axes=(Axis("concept"), Axis("class")))


def _histograms(rows: list[Row]) -> Iterator[Histogram]:
    """One for each class and kind of random sets."""
    alike: dict[tuple[str, bytes], list[Row]] = {}
    for row in rows:
        alike.setdefault((row.group, row.found.null.numpy().tobytes()), []).append(row)
    for number, ((group, _), own) in enumerate(alike.items()):
        counts, edges = np.histogram(own[0].found.null.numpy(), bins=20, range=(0, 1))
        said = ", ".join(f"{row.concept} {row.found.tcav:.2f}" for row in own)
        yield Histogram(key=f"null_{number}", title=f"Random sets in the concept's place, for {group}", edges=edges,
                        counts=counts, axes=(Axis("TCAV"), Axis("random sets")), note=f"The concepts' own: {said}.")
