"""Attributions of parts against a signed graph of parts and classes: edit distance, misattribution, their nulls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xai.errors import error

TIE = 1e-12  # sums that differ by less are equal: they are the same sum in another order
FORMS = ("linear", "exponential")
Drawn = Callable[[], torch.Generator]  # random numbers, made only where any are drawn


@dataclass(frozen=True)
class Attributed:
    """What a model attributes to the parts of N pictures, in float64.

    attr (N, F, K): the attribution of part j to class c. present (N, F) bool: whether the picture has the part. asked
    (N, F) bool: whether the part could be asked about there; where not, it takes no part in any sum. graph (F, K): +1
    where the part speaks for the class, -1 where against it, 0 where nothing is known. scope (N, K) bool: the
    classes that count for each picture.
    """

    attr: Tensor
    present: Tensor
    asked: Tensor
    graph: Tensor
    scope: Tensor

    def __post_init__(self) -> None:
        n, f, k = self.attr.shape
        shapes = (("present", self.present, (n, f)), ("asked", self.asked, (n, f)), ("graph", self.graph, (f, k)),
                  ("scope", self.scope, (n, k)))
        for name, given, shape in shapes:
            if tuple(given.shape) != shape:
                raise error(name, f"of shape {shape} beside attributions {(n, f, k)}", tuple(given.shape),
                            "Give the same pictures, parts and classes everywhere")

    @property
    def sign(self) -> Tensor:
        """(N, F): +1 where the part is present, -1 where absent: that a part is missing speaks against its classes."""
        return torch.where(self.present, 1.0, -1.0).double()

    @property
    def pairs(self) -> Tensor:
        """(N, F, K) bool: what counts."""
        return self.asked[:, :, None] & self.scope[:, None, :]

    @property
    def size(self) -> Tensor:
        """(N,): sum of |attr| over what counts."""
        return (self.attr.abs() * self.pairs).sum((1, 2))

    def edges(self, tau: float) -> Tensor:
        """(N, F, K) bool, the SHAP attribution graph: a part that is present and has more than tau, or one that is
        absent and has less than -tau; of what counts only."""
        upheld = torch.where(self.present[:, :, None], self.attr > tau, self.attr < -tau)
        return upheld & self.pairs


@dataclass(frozen=True)
class Alignment:
    """Of each picture (N,), float64; NaN where there is nothing to divide by.

    mass: the signed misattribution mass, sum relu(-attr kg s) / sum |attr|, 0 to 1, kg the graph, s +1 for a present
    and -1 for an absent part. unknown: the share of |attr| on pairs of which the graph says nothing. distance: the SHAP
    graph edit distance, the edges in exactly one of the two graphs. normalised: it over the edges of both, which is 1 -
    F1. precision, recall: of the attribution graph against the expert's.
    """

    mass: Tensor
    unknown: Tensor
    distance: Tensor
    normalised: Tensor
    precision: Tensor
    recall: Tensor


def align(found: Attributed, tau: float = 0.001) -> Alignment:
    """Compare attributions with the graph. Pairs with kg = 0 are in no count of edges, and never misattributed.

    Source: Diaz-Rodriguez et al. 2022, "EXplainable Neural-Symbolic Learning (X-NeSyL)", arXiv:2104.11914, section 4.4:
    the metric's intent, not its script. Compared are all parts and classes in scope: projected onto the attribution
    graph's own nodes, as there, an empty graph would score 0.
    """
    size, graph = found.size, found.graph.double()
    against = torch.relu(-found.attr * graph * found.sign[:, :, None])
    known = found.pairs & (found.graph != 0)
    mine, theirs = found.edges(tau) & known, known & (found.graph == 1)
    both, of_mine, of_theirs = ((one.sum((1, 2)).double()) for one in (mine & theirs, mine, theirs))
    distance = (mine ^ theirs).sum((1, 2)).double()
    distance[~found.pairs.any(2).any(1)] = math.nan
    return Alignment((against * found.pairs).sum((1, 2)) / size, (found.attr.abs() * (found.pairs & ~known)).sum((1, 2))
                     / size, distance, distance / (of_mine + of_theirs), both / of_mine, both / of_theirs)


@dataclass(frozen=True)
class Null:
    """A measure under permutations: `seen`, `values` (D,). whole: all permutations were taken, the identity too; else D
    of them at random."""

    seen: float
    values: Tensor
    whole: bool

    def p_low(self) -> float:
        """How often chance gives as little as was seen, or less."""
        return self._share(self.values <= self.seen + TIE)

    def p_high(self) -> float:
        """How often chance gives as much as was seen, or more."""
        return self._share(self.values >= self.seen - TIE)

    def _share(self, hits: Tensor) -> float:
        """Exact, or (1 + b) / (1 + D): what was seen is one of the draws (Phipson and Smyth 2010, eq. 2)."""
        count = int(hits.sum())
        return count / len(hits) if self.whole else (1 + count) / (1 + len(hits))


def column_null(found: Attributed, tau: float, draws: int, drawn: Drawn) -> tuple[Null, Null]:
    """Mean mass and mean edit distance where the graph's columns are given to the classes anew.

    All K! ways where these are at most `draws`, else that many at random. A model that knows nothing of the graph, its
    classes exchangeable, has a mass with a rank among them that is uniform.
    """
    k = found.graph.shape[1]
    whole = math.factorial(k) <= draws
    if whole:
        orders = torch.tensor(list(itertools.permutations(range(k))))
    else:
        orders = torch.rand(draws, k, dtype=torch.float64, generator=drawn()).argsort(1)
    nulls = []
    for table in _tables(found, tau):  # (K, K): what class c adds to the mean under the column of class d
        values = table[torch.arange(k), orders].sum(1)
        nulls.append(Null(float(table.diagonal().sum()), values, whole))
    return nulls[0], nulls[1]


def _tables(found: Attributed, tau: float) -> tuple[Tensor, Tensor]:
    k = found.graph.shape[1]
    size = found.size
    weight = torch.where(size > 0, 1 / size, 0.0) / max(1, int((size > 0).sum()))
    counted = max(1, int(found.pairs.any(2).any(1).sum()))
    edges, pairs, signed = found.edges(tau), found.pairs, found.attr * found.sign[:, :, None]
    mass, distance = torch.zeros(k, k, dtype=torch.float64), torch.zeros(k, k, dtype=torch.float64)
    for d in range(k):
        column = found.graph[:, d].double()
        against = torch.relu(-signed * column[None, :, None]) * pairs
        mass[:, d] = (against.sum(1) * weight[:, None]).sum(0)
        off = (edges ^ (column == 1)[None, :, None]) & pairs & (column != 0)[None, :, None]
        distance[:, d] = off.sum((0, 1)).double() / counted
    return mass, distance


@dataclass(frozen=True)
class Links:
    """Of each pair of part and class (F, K): `pictures` in which it counts, `gain` the mean over them of attr kg s /
    sum |attr| (the share of the attribution that agrees with the graph, negative where it contradicts it), and `p`, how
    often chance would contradict any link as clearly; 1 where the graph says nothing or no picture counts."""

    pictures: Tensor
    gain: Tensor
    p: Tensor


def contradicted(found: Attributed, draws: int, drawn: Drawn) -> Links:
    """Which links the attributions contradict, all links together held to one level.

    Statistic of a link: -sum g / sqrt(sum g^2) over pictures, g the signed share of the attribution. Null: a picture's
    shares are as likely of the other sign; all of a picture's are flipped together, and each link is held against the
    largest statistic of all, which bounds the chance of naming any falsely (Westfall and Young 1993, single step). All
    2^N flips where these are at most `draws`, else that many at random.
    """
    n, f, k = found.attr.shape
    size = found.size
    known = found.pairs & (found.graph != 0) & (size > 0)[:, None, None]
    share = found.attr * found.graph.double() * found.sign[:, :, None] / size.clamp(min=1e-300)[:, None, None]
    share = torch.where(known, share, 0.0).view(n, f * k)
    whole = n < 62 and 2**n <= draws
    if whole:
        flips = 1 - 2 * ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).double()
    else:
        flips = 1 - 2 * torch.randint(2, (draws, n), generator=drawn()).double()
    scale = share.square().sum(0).sqrt()
    scale = torch.where(scale > 0, scale, math.inf)
    seen = -share.sum(0) / scale
    most = torch.cat([(-(part @ share) / scale).amax(1) for part in torch.split(flips, 256)])
    hits = (most[:, None] >= seen - TIE).sum(0).double()
    p = hits / len(flips) if whole else (1 + hits) / (1 + len(flips))
    counts = known.sum(0)
    gain = share.sum(0).view(f, k) / counts.clamp(min=1)
    return Links(counts, gain, torch.where(counts > 0, p.view(f, k), 1.0))


def contradiction(attr: Tensor, graph: Tensor, labels: Tensor) -> Tensor:
    """min(0, attr[i, j, y_i] kg[j, y_i]), (N, F): what SHAP-Backprop holds against each part of each instance.

    attr (N, F, K), graph (F, K), labels (N,) the true classes. Source: Diaz-Rodriguez et al. 2022, arXiv:2104.11914,
    section 4.3. There is no sign for absent parts in it.
    """
    rows = torch.arange(len(labels))
    own: Tensor = attr[rows, :, labels] * graph.to(attr)[:, labels].T
    return own.clamp(max=0)


def backprop_weights(against: Tensor, h: float = 1.0, form: str = "linear") -> Tensor:
    """Weights of the loss, at least 1, for what `contradiction` gives (any shape): 1 - h m, or exp(-h m).

    Of an instance m is the least of its parts (`against.amin(1)`), of an entry its own. They are constants: no gradient
    passes them. Raises XaiError for another form.
    """
    if form not in FORMS:
        raise error("the form of SHAP-Backprop", " or ".join(FORMS), repr(form), "Choose one of these")
    against = against.detach()
    return 1 - h * against if form == "linear" else torch.exp(-h * against)
