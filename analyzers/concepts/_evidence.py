"""What SP-LIME keeps of each picture, what it made of all of them, and the panels that tell it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analyzers.concepts._drawn import Packed, numbered, strip
from analyzers.concepts._pick import Coverage, Pick, expected_jaccard, importance, jaccard
from analyzers.concepts._words import Words
from xai.panels import Axis, Cell, Column, Curve, Number, Picture, Table

EXAMPLES, STRIPS, DRAWN = 6, 10, 24  # superpixels shown of a word; words and picks drawn of a segmentation, at most
COARSE = 0.5  # cells of the layer's grid: where most superpixels are smaller, their vectors are those of neighbours


@dataclass(frozen=True)
class Parts:
    """What is kept of one picture under one segmentation: the vectors (p, K) of the superpixels that count, of length
    1, their weights (p,) as shares of all absolute weights, their ids (p,); the label map, the number of its segments,
    how many cells of the layer's grid they cover in the median (None: no grid), and the fit's R2 out of sample."""

    vectors: Tensor
    weights: Tensor
    ids: Tensor
    labels: Packed
    count: int
    cells: float | None
    r2: float | None


@dataclass(frozen=True)
class Seen:
    """One picture: its name and hash, what is explained of it, its predicted class (-1 where the head holds none), its
    pixels, and its parts under each segmentation that it can take part in."""

    name: str
    picture: str
    target: str
    kind: int
    pixels: Packed
    parts: dict[str, Parts]


@dataclass(frozen=True)
class View:
    """SP-LIME under one segmentation, the `number`-th. members: the pictures that are the rows of w (m, d), places: the
    number of each among all pictures, of: the word (from 0) of each superpixel of each row. Column c of w is word
    c % k, of its negative weights where c >= k. curve, random: coverage of the first 0, 1, ... pictures, by the pick
    and (mean, low, high) by chance."""

    how: str
    number: int
    members: list[Seen]
    places: list[int]
    words: Words
    of: list[Tensor]
    w: Tensor
    coverage: Coverage
    pick: Pick
    curve: list[float]
    random: tuple[Tensor, Tensor, Tensor]

    @property
    def k(self) -> int:
        """How many words."""
        return len(self.words.centres)

    def column(self, c: int) -> str:
        """The name of a column."""
        sign = "" if self.w.shape[1] == self.k else "+" if c < self.k else "\u2212"
        return f"{c % self.k + 1}{sign}"

    def named(self, columns: Sequence[int]) -> str:
        """Their names in a row."""
        return ", ".join(self.column(c) for c in columns) or "none"

    def superpixels(self, row: int, c: int) -> Tensor:
        """(p,) bool: which of the row's superpixels are of that column's word and sign."""
        parts = self.members[row].parts[self.how]
        return (self.of[row] == c % self.k) & ((parts.weights < 0) == (c >= self.k))


def curves(views: Sequence[View], draws: int) -> Curve:
    """The coverage by number of pictures, of each segmentation's pick and of as many random ones."""
    most = max(len(view.curve) for view in views)
    lines: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = []
    for view in views:
        own = _padded(torch.tensor(view.curve, dtype=torch.float64), most)
        lines.append((view.how, own, own, own))
        chance, under, above = (_padded(one, most) for one in view.random)
        lines.append((f"{view.how}, random", chance, under, above))
    names, mean, low, high = zip(*lines, strict=True)
    note = (f"Random: the mean of {draws} picks of as many pictures at random, and where 95 % of them lie. The greedy "
            "pick has at least 63 % of the best coverage that as many pictures can have.")
    return Curve(key="coverage", title="How much of what counts the picked pictures show", x=np.arange(float(most)),
                 y=np.stack(mean), low=np.stack(low), high=np.stack(high), names=names, note=note,
                 axes=(Axis("pictures picked"), Axis("coverage", "share of all words by importance")))


def beside(views: Sequence[View]) -> Table:
    """The segmentations side by side, a column each."""
    columns: list[tuple[Cell, ...]] = []
    coarse = []
    for view in views:
        parts = [one.parts[view.how] for one in view.members]
        cells, done = _median([one.cells for one in parts]), len(view.pick.rows)
        coarse += [view.how] if cells is not None and cells < COARSE else []
        several = ((view.w != 0).view(len(parts), -1, view.k).any(1).sum(0) > 1).sum()
        columns.append((len(parts), _median([one.count for one in parts]), _median([one.r2 for one in parts]), cells,
                        view.k, int(several), done, 100 * view.curve[done], 100 * float(view.random[0][done])))
    names = ("pictures", "superpixels a picture", "R2 of LIME's fit, out of sample",
             "size of a superpixel, in cells of the layer", "visual words", "of these in more than one picture",
             "pictures picked", "coverage of the pick, %", "coverage of as many at random, %")
    rows = [row for row in zip(names, *columns, strict=True) if any(cell is not None for cell in row[1:])]
    small = (f" Most superpixels of {', '.join(coarse)} are smaller than half a cell of the layer's grid, and have the "
             "vectors of their neighbourhood. An earlier layer, or fewer of them, tells them apart." if coarse else "")
    return Table(key="segmentations", title="The segmentations side by side", rows=tuple(rows),
                 columns=(Column(""), *(Column(view.how) for view in views)),
                 note=f"Superpixels, their size and R2 are medians over the pictures.{small}")


def agreement(one: View, two: View, by_class: bool) -> Number:
    """How far two segmentations pick the same pictures."""
    mine, theirs = ([view.places[row] for row in view.pick.rows] for view in (one, two))
    counts = [torch.stack([view.coverage.groups[row] for row in view.pick.rows]).bincount(minlength=view.coverage.count)
              for view in (one, two)]
    both, chance = len(set(mine) & set(theirs)), ""
    if one.places == two.places:
        expected = expected_jaccard(counts[0].tolist(), counts[1].tolist(), one.coverage.groups.bincount().tolist())
        drawn = "As many pictures of each class" if by_class else "As many pictures"
        chance = f" {drawn} at random would agree to {expected:.2g} on average."
    return Number(key=f"agreement_{one.number}_{two.number}", title=f"Agreement of the picks: {one.how} and {two.how}",
                  value=jaccard(mine, theirs), unit="of the pictures that either picks (Jaccard)",
                  note=f"{both} of the pictures are in both.{chance}")


def picked(view: View, note: str) -> Table:
    """The picked pictures, in order."""
    rows, done = [], 0.0
    for number, (row, gain, new) in enumerate(zip(view.pick.rows, view.pick.gains, view.pick.new, strict=True), 1):
        one, done = view.members[row], done + gain
        rows.append((number, one.name, one.target, view.named(new), 100 * gain, min(done, 1.0)))
    early = "" if len(rows) == len(view.curve) - 1 else " The pick ended as no other picture had a word to add."
    return Table(key=f"picks_{view.number}", title=f"{view.how}: the picked pictures", rows=tuple(rows),
                 columns=(Column("pick"), Column("picture"), Column("explained"), Column("words it adds"),
                          Column("adds", "%"), Column("coverage so far", "probability")),
                 note=f"Gains never grow; of equal pictures the first is picked.{note}{early}")


def told(view: View, kept: int) -> Table:
    """The visual words: what each counts for, and how well it is set apart."""
    worth = importance(view.w)
    found: list[tuple[tuple[int, int], tuple[Cell, ...]]] = []
    for c in range(view.w.shape[1]):
        mine = torch.cat([view.superpixels(row, c) for row in range(len(view.members))])
        if not mine.any():
            continue
        first = next((i for i, row in enumerate(view.pick.rows, 1) if view.w[row, c] != 0), None)
        found.append(((c % view.k, c), (
            view.column(c), float(worth[c]), int(mine.sum()), first, _angle(view.words.likeness[mine]),
            _angle(view.words.other[mine]) if view.k > 1 else None, float((view.w[:, c] != 0).double().mean()))))
    note = (f"Of each picture the {kept} words of the largest weights are kept, and importance is the root of the sum "
            "of what is kept. Angles, in the mean: between the vectors of a word's superpixels and its centre, and the "
            "nearest other one; where they are close, the border between the words is arbitrary.")
    return Table(key=f"words_{view.number}", title=f"{view.how}: the visual words", note=note,
                 columns=(Column("word"), Column("importance"), Column("superpixels"), Column("shown by pick"),
                          Column("angle to its centre", "\u00b0"), Column("to the next", "\u00b0"),
                          Column("of the pictures", "probability")), rows=tuple(row for _, row in sorted(found)))


def pictures(view: View) -> Iterator[Picture]:
    """Each picked picture with its words outlined; the first two dozen."""
    for number, (row, gain, new) in enumerate(zip(view.pick.rows, view.pick.gains, view.pick.new, strict=True), 1):
        if number > DRAWN:
            return
        one, parts = view.members[row], view.members[row].parts[view.how]
        own = view.w[row].nonzero().flatten().tolist()
        ids = [(view.column(c), parts.ids[view.superpixels(row, c)].tolist()) for c in own]
        pixels, marks = numbered(one.pixels.array(), parts.labels.array(), ids)
        again = [c for c in own if c not in new]
        yield Picture(key=f"pick_{view.number}_{number}", title=f"{view.how}, pick {number}: {one.name}",
                      picture=one.picture, pixels=pixels, marks=marks,
                      note=f"Explained: {one.target}. New words: {view.named(new)}. They add {100 * gain:.3g} % of "
                           "what all pictures show" + (f"; it has {view.named(again)} too." if again else "."))


def strips(view: View) -> Iterator[Picture]:
    """Of each of the first words the superpixels that are nearest to its centre, one a picture."""
    rows = torch.repeat_interleave(torch.tensor([len(mine) for mine in view.of]))
    ids = torch.cat([one.parts[view.how].ids for one in view.members])
    worth = importance(view.w).view(-1, view.k).sum(0)
    for word in range(min(view.k, STRIPS)):
        mine = (view.words.of == word).nonzero().flatten()
        order = mine[view.words.likeness[mine].sort(descending=True, stable=True).indices].tolist()
        nearest = {int(rows[i]): i for i in reversed(order)}
        chosen = sorted(nearest.values(), key=order.index)[:EXAMPLES]
        if not chosen or float(worth[word]) <= 0:
            continue
        members = [view.members[int(rows[i])] for i in chosen]
        cuts = [(one.pixels.array(), one.parts[view.how].labels.array() == int(ids[i]))
                for one, i in zip(members, chosen, strict=True)]
        said = "superpixel that is most like it" if len(cuts) == 1 else "superpixels that are most like it"
        yield Picture(key=f"word_{view.number}_{word + 1}", title=f"{view.how}, word {word + 1}",
                      pixels=strip(cuts, EXAMPLES),
                      note=f"The {len(cuts)} {said}, one a picture: {', '.join(one.name for one in members)}.")


def _angle(cosines: Tensor) -> float:
    return float(cosines.clamp(-1, 1).acos().rad2deg().mean())


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _padded(values: Tensor, length: int) -> np.ndarray:
    """float64, with the last value repeated."""
    found = values.numpy()
    return np.concatenate([found, np.full(length - len(found), found[-1])])
