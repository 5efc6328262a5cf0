"""Knowledge-graph alignment: whether the parts of a picture speak for the classes that an expert names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from analyzers.concepts import _alignment_panels as drawn
from analyzers.concepts._expert_graph import ExpertGraph, graph_of, read_graph
from analyzers.concepts._left import Left
from analyzers.concepts._parts import Ask, Player, annotated, class_of, from_scores, part_names, sheets, told
from xai import seeds
from xai.alignment import Attributed
from xai.analyzer import Analyzer, Passes, param
from xai.baselines import check_baseline
from xai.errors import did_you_mean, error
from xai.images import Images
from xai.model import Model
from xai.panels import AnyPanel
from xai.result import Verdict
from xai.sampler import CLASSED, VALUES
from xai.subject import Subject

SCOPES = ("predicted", "true", "all")


@dataclass(frozen=True)
class KnowledgeGraph(Analyzer):
    """Knowledge-graph alignment: whether a picture's parts speak for the classes that an expert links them to.

    phi_ijc: the Shapley value of part j for class c in picture i; kg_jc: +1 where the expert says that the part speaks
    for the class, -1 against it, 0 where nothing is known; s_ij: +1 where the part is present, -1 where absent. Signed
    misattribution mass, of a picture: sum relu(-phi kg s) / sum |phi|, 0 to 1. SHAP graph edit distance: the edges in
    exactly one of two graphs, the expert's (kg = +1) and that of the attributions (present and phi > tau, or absent and
    phi < -tau); divided by the edges of both it is 1 - F1. Pairs with kg = 0 are no edge of either. Nulls: both
    measures with the graph's columns given to the classes anew; for each link, the signs of whole pictures flipped, all
    links held to one level.

    The graph is a JSON file, {"classes": {"gothic": {"pointed arch": 1, "round arch": -1}}, "otherwise": 0}: classes of
    the model by name or as class:NUMBER, what is not written is "otherwise" (0, the default, or -1). Whose parts: a
    network that has `part_names`, `parts(x)` and `classify(parts)`, with model(x) = classify(parts(x)), is asked for
    its part scores, and one that is taken out is averaged over other pictures. For any other model the parts are the
    boxes or masks of the pictures whose labels the graph names, shown or hidden; a part that a picture has not is left
    out there. Without a file, a class's parts are those that the annotations of its pictures show: no expert said so.

    Reads     one model, images (with boxes that bear the names of parts, unless the model tells its parts)
    Yields    mass and edit distance with intervals and nulls, for the predicted class, the true one and all; the links
              that the model contradicts; attributions beside the graph; how the distance moves with tau
    Raises    XaiError for a graph with a wrong key, a class or part that the model has not, a model without classes, or
              pictures of which no part can be asked about
    Cost      at most samples + 1 forwards a picture beyond its own; for a model that tells its parts one, and 2^F x
              background rows of its classifier (F above 12: samples x background). Without a graph file all pictures
              are read twice. Of each picture with boxes what the network saw is kept, compressed
    Reference Diaz-Rodriguez et al. 2022, "EXplainable Neural-Symbolic Learning (X-NeSyL) methodology to fuse deep
              learning representations with expert knowledge graphs", arXiv:2104.11914, section 4; nulls: Westfall and
              Young 1993, "Resampling-based multiple testing"
    """

    needs: ClassVar[frozenset[str]] = frozenset({"forward", "images"})
    shares: ClassVar[bool] = True  # the classes are the graph's
    upper: ClassVar[bool] = True  # how many parts a picture has is not known before

    graph: str = param("", "the expert graph, a JSON file; without one, what the annotations of the pictures show")
    scope: str = param("auto", "whose classes make the headline: the predicted one, the true one, or all; auto: the "
                               "predicted one, or all where the graph has none that is predicted",
                       choices=("auto", *SCOPES))
    value: str = param("log_odds", "the score of a class: log_odds, probability or logit (which may move with those of "
                                   "all classes, and means nothing then)", choices=VALUES)
    tau: float = param(0.001, "attribution above which a part is an edge, in units of the score", low=0)
    samples: int = param(256, "coalitions of parts asked of a picture at most; all of them where there are no more "
                              "(8 parts have 254)", low=2)
    baseline: str = param("blur", "what is seen in place of a hidden part: black, zero (the mean colour of all "
                                  "pictures), grey, white, blur or a level from 0 to 1")
    present: float = param(0.5, "part score from which a part counts as present, where the model tells its parts")
    background: int = param(32, "pictures over whose part scores one that is taken out is averaged", low=1)
    draws: int = param(999, "permutations of a null, where there are more", low=99)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline(self.baseline, self.name())

    def passes(self, model: Model) -> Passes:
        """The most for one picture: how many parts it shows is not known before, unless the model tells them."""
        return Passes(forwards=self.samples + 1 if part_names(model) is None else 1)

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """Attributions of every picture, then what they say of the graph."""
        model, images = subject.one_model(), subject.images
        if images is None or not len(images):
            raise error("the pictures", "given for the alignment with a graph", "none", "Name a folder with --data")
        if model.head.kind not in CLASSED:
            raise error("the model", "one that has classes", f"{model.spec}, whose head is {model.head.kind}",
                        "Use a classifier")
        left = Left()
        own = part_names(model)
        if own is not None:
            graph, unknown = self._known(model, own)
            players = self._of_scores(model, subject, graph, left)
        else:
            graph, unknown = self._graph(model, images, left), ()
            ask = Ask(model, graph.parts, graph.numbers, self.value, self.baseline, self.samples, subject.seed,
                      subject.memory_bytes, self.name())
            players = list(annotated(ask, images, left))
        if not players:
            raise error("the pictures", "such that one of them has parts to ask about", left.said() or "none",
                        "Give boxes whose labels are parts of the graph (COCO, VOC, CSV), or a model that tells its "
                        "parts (part_names, parts(x), classify(parts))")
        views = {scope: view for scope in SCOPES if (view := _view(players, graph, scope)) is not None}
        scope = self.scope if self.scope != "auto" else "predicted" if "predicted" in views else "all"
        if not views:
            raise error("the model", "one whose scores depend on the parts of these pictures", "no attribution but 0",
                        "Look at its predictions, or take another baseline")
        if scope not in views:
            raise error(f"{self.name()}.scope", f"one of {', '.join(views)} for these pictures", repr(scope),
                        "No picture has such a class in the graph")

        def numbers(what: str) -> torch.Generator:
            return seeds.generator(subject.seed, self.name(), what)

        yield drawn.basis(graph, players, own is not None, self.graph, self._how(own is not None), unknown)
        if left.names:
            yield left.panel()
        yield from drawn.measured(views, scope, self.tau, self.draws, numbers)
        yield from drawn.told(views[scope], graph, self.draws, numbers)
        yield drawn.over_tau(views, self.tau)
        yield from drawn.worst(views[scope], players, graph)

    def _how(self, told_parts: bool) -> str:
        unit = self.value.replace("_", "-")
        if told_parts:
            return (f"Shapley values of the classifier over part scores ({unit}), a score that is taken out averaged "
                    f"over {self.background} pictures; a part is present from a score of {self.present:g}.")
        return f"Shapley values of the boxed parts ({unit}), a hidden part seen as the baseline {self.baseline}."

    # --- the graph ---
    def _graph(self, model: Model, images: Images, left: Left) -> ExpertGraph:
        if self.graph:
            return read_graph(self.graph, model)
        shown: dict[int, set[str]] = {}
        for sheet in sheets(images, Left()):  # what cannot be read is told when the pictures are asked about
            number = class_of(sheet.labels, model)
            if number is not None and sheet.parts:
                shown.setdefault(number, set()).update(sheet.parts)
        if not shown:
            raise error(f"{self.name()}.graph", "a JSON file, where the pictures' annotations do not tell classes and "
                        "parts", "none", 'Write {"classes": {"gothic": {"pointed arch": 1}}} and name it with '
                        "--set graph=FILE.json")
        return graph_of(shown, model)

    def _known(self, model: Model, own: tuple[str, ...]) -> tuple[ExpertGraph, tuple[str, ...]]:
        """The graph with the model's parts for rows, and the parts that it does not name."""
        if not self.graph:
            raise error(f"{self.name()}.graph", "a JSON file for a model that tells its parts", "none",
                        'Write {"classes": {"gothic": {"pointed arch": 1}}} and name it with --set graph=FILE.json')
        graph = read_graph(self.graph, model)
        for part in graph.parts:
            if part not in own:
                raise error(f"the part {part!r} of the graph", f"one of the parts of {model.spec}", "none of them",
                            did_you_mean(part, own) or f"It has {', '.join(own)}")
        sign = torch.zeros(len(own), len(graph.classes), dtype=torch.int8)
        for j, part in enumerate(own):
            if part in graph.parts:
                sign[j] = graph.sign[graph.parts.index(part)]
        return (ExpertGraph(own, graph.classes, graph.numbers, sign),
                tuple(part for part in own if part not in graph.parts))

    def _of_scores(self, model: Model, subject: Subject, graph: ExpertGraph, left: Left) -> list[Player]:
        assert subject.images is not None
        said = told(model, subject.images, len(graph.parts), subject.seed, subject.memory_bytes, left)
        if not said.names:
            return []
        return list(from_scores(model, said, graph.numbers, self.value, self.present, self.background, self.samples,
                                lambda what: seeds.generator(subject.seed, self.name(), what)))


def _view(players: list[Player], graph: ExpertGraph, scope: str) -> Attributed | None:
    """All pictures with the classes that count under a scope; None where no picture has any attribution there."""
    n, k = len(players), len(graph.classes)
    if scope == "all":
        counts = torch.ones(n, k, dtype=torch.bool)
    else:
        of = torch.tensor([one.predicted if scope == "predicted" else one.truth for one in players])
        counts = of[:, None] == torch.arange(k)
    found = Attributed(_stacked(players, "attr"), _stacked(players, "present"), _stacked(players, "asked"),
                       graph.sign, counts)
    return found if bool((found.size > 0).any()) else None


def _stacked(players: list[Player], name: str) -> Tensor:
    return torch.stack([getattr(one, name) for one in players])
