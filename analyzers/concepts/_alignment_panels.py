"""The panels of the alignment with an expert graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from analyzers.concepts._expert_graph import ExpertGraph
from analyzers.concepts._parts import Player
from xai.alignment import Attributed, Links, Null, align, column_null, contradicted
from xai.panels import AnyPanel, Axis, Cell, Column, Curve, Graph, Histogram, Mark, Matrix, Number, Picture, Table, Text
from xai.result import Verdict
from xai.statistics import interval

LEVEL = 0.05  # of a test
LEAST = 0.01  # of the attribution: a link that is contradicted by less is certain perhaps, but of no weight
SHOWN, ROWS, DRAWN = 10, 60, 3  # pictures in the table, links in theirs, pictures drawn
Generators = Callable[[str], torch.Generator]


def basis(graph: ExpertGraph, players: Sequence[Player], told_parts: bool, file: str, how: str,
          unknown: Sequence[str]) -> Text:
    """What is compared with what."""
    known, total = int((graph.sign != 0).sum()), graph.sign.numel()
    source = "the model itself tells" if told_parts else "their annotations show"
    lines = [f"{len(players)} pictures whose parts {source}: {len(graph.parts)} parts, {len(graph.classes)} classes; "
             f"of their {total} pairs the graph says something of {known} ({int((graph.sign == 1).sum())} for, "
             f"{int((graph.sign == -1).sum())} against). {how}"]
    errors = torch.stack([one.error for one in players])
    if bool((errors > 0).any()):
        finite = errors[errors.isfinite()]
        few = int((~errors.isfinite()).flatten(1).any(1).sum())
        lines.append(f"Not all coalitions were asked: the largest standard error of an attribution is "
                     f"{float(finite.max()) if len(finite) else math.nan:.2g}"
                     + (f"; in {few} pictures they were too few to tell one." if few else "."))
    met = torch.stack([one.asked for one in players]).any(0).tolist()
    unseen = [part for part, seen in zip(graph.parts, met, strict=True) if not seen]
    if unseen:
        lines.append(f"Parts of the graph that no picture shows: {', '.join(unseen)}.")
    if unknown:
        lines.append(f"Parts of the model that the graph does not name: {', '.join(unknown)}.")
    if not file:
        lines.append("No expert graph was named: here a class's parts are those that its own pictures show, and "
                     "nothing speaks against a class.")
    return Text(key="basis", title="What is compared", text=" ".join(lines), tone="plain" if file else "warning")


def measured(views: Mapping[str, Attributed], scope: str, tau: float, draws: int,
             numbers: Generators) -> Iterator[AnyPanel | Verdict]:
    """The measures of each scope, and their nulls under the scope of the headline."""
    found = {name: align(view, tau) for name, view in views.items()}
    head = found[scope]
    mass, mass_low, mass_high, used = _mean(head.mass)
    yield Number(key="mass", title="Signed misattribution mass", value=mass, low=_plain(mass_low),
                 high=_plain(mass_high), unit="of the attribution, 0 to 1",
                 note=f"Scope: {scope}. The share of all attribution whose sign the graph contradicts; {used} "
                 "pictures, 95 % bootstrap interval over them. Absent parts count with the other sign.")
    far, far_low, far_high, used = _mean(head.normalised)
    yield Number(key="distance", title="SHAP graph edit distance, normalised", value=_plain(far), low=_plain(far_low),
                 high=_plain(far_high), unit="of the edges of both graphs, 0 to 1",
                 note=f"Scope: {scope}, tau {tau:g}. {used} pictures have an edge in either graph.")
    rows: list[tuple[Cell, ...]] = []
    for name, one in found.items():
        values = (one.mass, one.unknown, one.distance, one.normalised, 1 - one.normalised, one.precision, one.recall)
        rows.append((name, int(one.mass.isfinite().sum()), *(_plain(_mean(value)[0]) for value in values),
                     int((~one.mass.isfinite()).sum())))
    names = ("scope", "pictures", "misattribution mass", "mass the graph is silent on", "edit distance, edges",
             "edit distance, normalised", "F1", "precision", "recall", "pictures without attribution")
    yield Table(key="scopes", title="The measures under each scope", rows=tuple(rows),
                columns=tuple(Column(name) for name in names),
                note="Means over pictures; of a ratio, over those where it is defined. Under the scope all, classes "
                "that were never in play count as much as the predicted one.")
    nulls = column_null(views[scope], tau, draws, lambda: numbers("columns"))
    for null, key, what in zip(nulls, ("null_mass", "null_distance"), ("misattribution mass", "edit distance"),
                               strict=True):
        yield _histogram(null, key, what)
    yield _chance(nulls[0])


def _histogram(null: Null, key: str, what: str) -> Histogram:
    top = max(float(null.values.max()), null.seen)
    counts, edges = np.histogram(null.values.numpy(), bins=min(30, max(5, len(null.values) // 8)),
                                 range=(0.0, top if top > 0 else 1.0))
    drawn = "all" if null.whole else "random"
    return Histogram(key=key, title=f"The mean {what} under permuted classes", edges=edges, counts=counts,
                     axes=(Axis(f"mean {what}"), Axis("permutations")),
                     note=f"The graph's columns given to the classes anew, {drawn} {len(null.values)} ways. With the "
                     f"true graph it is {null.seen:.4g}: as little by chance with p = {null.p_low():.3g}, as much with "
                     f"p = {null.p_high():.3g}.")


def _chance(null: Null) -> Verdict:
    low, high, n = null.p_low(), null.p_high(), len(null.values)
    passed, advice = None, "Give a graph of four classes or more"
    if null.whole and 1 / n > LEVEL:
        sentence = f"Only {n} permutations of the classes are there, too few to tell from chance."
    elif low <= LEVEL:
        passed, advice = True, ""
        sentence = f"The attributions fit the graph better than it fits with its classes exchanged (p = {low:.3g})."
    else:
        passed, advice = False, "See which links are contradicted, or whether each class has enough pictures"
        worse = f"; worse than chance with p = {high:.3g}" if high <= LEVEL else ""
        sentence = f"The attributions fit the graph no better than with its classes exchanged (p = {low:.3g}{worse})."
    return Verdict(name="better than permuted classes", value=low, threshold=LEVEL, passed=passed, sentence=sentence,
                   advice=advice)


def told(view: Attributed, graph: ExpertGraph, draws: int, numbers: Generators) -> Iterator[AnyPanel | Verdict]:
    """Which links the attributions contradict, and attributions beside the graph."""
    links = contradicted(view, draws, lambda: numbers("flips"))
    wrong = (links.p <= LEVEL) & (links.gain <= -LEAST)
    places = sorted(wrong.nonzero().tolist(), key=lambda at: float(links.gain[at[0], at[1]]))
    named = [f"{graph.parts[j]} and {graph.classes[c]}" for j, c in places]
    least = float(torch.where(links.gain < 0, links.p, 1.0).min())
    sentence, advice = (f"No link of the graph is contradicted by at least {LEAST:.0%} of the attribution beyond what "
                        "chance would do (all links at one level)."), ""
    if places:
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        sentence = f"The attributions contradict the graph in {', '.join(named[:3])}{more}."
        advice = "Look whether the part is a shortcut in the data, or whether the graph is wrong there"
    yield Verdict(name="no link is contradicted", value=least, threshold=LEVEL, passed=not places, sentence=sentence,
                  advice=advice)
    yield _links(links, wrong, graph)
    mean = _signed(view)
    names = {"rows": graph.parts, "columns": graph.classes, "axes": (Axis("part"), Axis("class"))}
    yield Matrix(key="attributed", title="What speaks for which class in the model", values=_array(mean), **names,  # type: ignore[arg-type]  # a mapping of three kinds
                 note="Mean share of the attribution, over the pictures whose scope holds the class; an absent part's "
                 "with the other sign, so that positive means: its presence speaks for the class.")
    yield Matrix(key="graph", title="What the graph says", values=_array(graph.sign), **names)  # type: ignore[arg-type]  # as above
    yield _drawn(mean, wrong, graph)


def _links(links: Links, wrong: Tensor, graph: ExpertGraph) -> Table:
    rows: list[tuple[Cell, ...]] = []
    at = [(j, c) for j, c in (graph.sign != 0).nonzero().tolist() if links.pictures[j, c] > 0]
    for j, c in sorted(at, key=lambda one: float(links.gain[one[0], one[1]]))[:ROWS]:
        rows.append((graph.parts[j], graph.classes[c], "for" if graph.sign[j, c] > 0 else "against",
                     int(links.pictures[j, c]), 100 * float(links.gain[j, c]), float(links.p[j, c]),
                     "contradicted" if wrong[j, c] else ""))
    return Table(key="links", title="The links of the graph, the most contradicted first", rows=tuple(rows),
                 columns=(Column("part"), Column("class"), Column("graph"), Column("pictures"),
                          Column("agreeing attribution", "%"), Column("p"), Column("")),
                 note="Agreeing attribution: of all of a picture's, in the mean; negative where the model contradicts "
                 "the graph. p: how often, with the pictures' signs flipped at random, any link would be contradicted "
                 f"as clearly. Contradicted: p at most {LEVEL:g} and at least {LEAST:.0%}.")


def _signed(view: Attributed) -> Tensor:
    """(F, K): the mean signed share of the attribution."""
    size = view.size
    share = view.attr * view.sign[:, :, None] / torch.where(size > 0, size, 1.0)[:, None, None] * view.pairs
    counts = (view.pairs & (size > 0)[:, None, None]).sum(0)
    mean: Tensor = share.sum(0) / counts.clamp(min=1)
    return mean


def _drawn(mean: Tensor, wrong: Tensor, graph: ExpertGraph) -> Graph:
    """Parts to classes: links of the graph that the attributions uphold (positive) or contradict (negative)."""
    agree = mean * graph.sign.double()
    edges = tuple((j, len(graph.parts) + c, float(agree[j, c])) for j, c in (graph.sign != 0).nonzero().tolist()
                  if (graph.sign[j, c] == 1 and agree[j, c] != 0) or wrong[j, c])
    return Graph(key="agreement", title="The links, by how the attributions uphold them",
                 nodes=(*graph.parts, *graph.classes), edges=edges,
                 note="Every link for a class, and those against one that are contradicted. Weight: the agreeing share "
                 "of the attribution, negative where it contradicts the graph.")


def over_tau(views: Mapping[str, Attributed], tau: float) -> Curve:
    """The normalised distance over thresholds, up to a third of the largest attribution."""
    names = tuple(views)
    most = max(float((view.attr.abs() * view.pairs).max()) for view in views.values())
    x = np.concatenate([[0.0], np.geomspace(max(most * 1e-4, 1e-12), max(most / 3, 1e-10), 16)])
    y = np.array([[_mean(align(views[name], float(at)).normalised, quick=True)[0] for at in x] for name in names])
    return Curve(key="over_tau", title="The normalised edit distance by threshold", x=x, y=np.nan_to_num(y, nan=1.0),
                 names=names, axes=(Axis("tau", "units of the score"), Axis("edit distance, normalised")),
                 note=f"The measures above are at {tau:g}. No edge in either graph counts here as 1.")


def worst(view: Attributed, players: Sequence[Player], graph: ExpertGraph) -> Iterator[AnyPanel]:
    """The pictures whose attributions contradict the graph most; where parts are boxes, the first drawn with them."""
    mass = align(view).mass
    order = [i for i in mass.nan_to_num(-1).sort(descending=True, stable=True).indices.tolist() if mass[i] == mass[i]]
    against = torch.where(view.pairs, -view.attr * graph.sign.double() * view.sign[:, :, None], -math.inf)
    rows: list[tuple[Cell, ...]] = []
    for i in order[:SHOWN]:
        part, kind = divmod(int(against[i].argmax()), len(graph.classes))
        one, said = players[i], float(mass[i]) > 0
        rows.append((one.name, _class(one.predicted, graph), _class(one.truth, graph), 100 * float(mass[i]),
                     graph.parts[part] if said else "", graph.classes[kind] if said else "",
                     float(one.attr[part, kind]) if said else None))
    names = ("picture", "predicted", "true", "misattributed, %", "most by the part", "for the class", "attribution")
    yield Table(key="worst", title="The pictures that contradict the graph most", rows=tuple(rows),
                columns=tuple(Column(name) for name in names))
    for i in order[:DRAWN]:
        one = players[i]
        if one.seen is None:
            continue
        own = int(view.scope[i].nonzero()[0])
        values = dict(zip(graph.parts, one.attr[:, own].tolist(), strict=True))
        marks = tuple(Mark("box", ((x0, y0), (x1, y1)), f"{kind}: {values[kind]:+.3g}")
                      for kind, (x0, y0, x1, y1) in one.boxes)
        yield Picture(key="parts", title=f"Parts and what they say of {graph.classes[own]}", picture=one.picture,
                      pixels=one.seen.array(), marks=marks, note=one.name)


def _class(number: int, graph: ExpertGraph) -> str:
    return graph.classes[number] if number >= 0 else "not in the graph"


def _mean(values: Tensor, quick: bool = False) -> tuple[float, float, float, int]:
    """Mean, its 95 % interval and the count, of the values that are numbers."""
    known = values[values.isfinite()]
    if not len(known):
        return math.nan, math.nan, math.nan, 0
    low, high = (math.nan, math.nan) if quick else interval(known)
    return float(known.mean()), low, high, len(known)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _array(values: Tensor) -> np.ndarray:
    return np.asarray(values.numpy(), dtype=np.float32)
