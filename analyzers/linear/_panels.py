"""What the page shows of a linear system: sums, votes, rows, columns, offsets by layer and place, singular pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xai.linear import COMPLETE, Linear, Singular, Term
from xai.panels import AnyPanel, Axis, Cell, Column, Curve, Heatmap, Mark, Number, Picture, Table, Text
from xai.spread import spread

NAMED = 8  # layers, classes or choices that a table names


@dataclass(frozen=True)
class View:
    """Everything that was asked of one picture and target; `row` F^T u, `others` further classes and their `rows`."""

    picture: str
    name: str
    linear: Linear
    direction: Tensor
    row: Tensor
    terms: tuple[Term, ...]
    zero: Tensor
    votes: Tensor
    others: list[int]
    rows: Tensor
    drawn: bool
    labels: Callable[[int], str]
    size: tuple[int, int]
    pixels: list[int]
    columns: Tensor
    singular: Singular | None
    gap: float
    exact: float

    def offset(self, row: Tensor, direction: Tensor) -> float:
        """What no pixel decides of <direction, y>: r, and F of the input that has no vote."""
        u = direction.reshape(-1).double().cpu()
        return float(self.linear.offset.reshape(-1).double().cpu() @ u) + float((row * self.zero).double().sum())


def panels(view: View) -> Iterator[AnyPanel]:
    """All panels of one picture, the sums first."""
    yield from _sums(view)
    yield _classes(view)
    yield from _votes(view)
    yield from _rows(view)
    yield from _offsets(view)
    yield from _columns(view)
    yield from _singular(view)
    yield from _held(view)


def _sums(view: View) -> Iterator[AnyPanel]:
    votes, offset = float(view.votes.double().sum()), view.offset(view.row, view.direction)
    yield Number(key="votes_sum", title="Decided by pixels", picture=view.picture, unit="score", value=votes,
                 note="The sum of all votes.")
    yield Number(key="offset", title="Decided by no pixel", picture=view.picture, unit="score", value=offset,
                 note=_of_zero(view))
    both = abs(votes) + abs(offset)
    yield Number(key="offset_share", title="Share of the offset", picture=view.picture, unit="of both sizes",
                 value=abs(offset) / both if both else None,
                 note="|offset| / (|sum of votes| + |offset|); the two may oppose each other.")
    limit = COMPLETE.get(view.linear.x.dtype, 1e-2)
    good = view.gap <= limit
    yield Number(key="completeness", title="Completeness gap", picture=view.picture, value=view.gap,
                 unit="of sum |votes| + sum |offset terms|", note=(
                     f"Votes and offset, each found by itself, add up to {votes + offset:.6g}; the score is "
                     f"{view.exact:.6g}. " + ("Every decision was held." if good else "")))
    if not good:
        yield Text(key="incomplete", title="Not everything was held", picture=view.picture, tone="bad", text=(
            f"The gap is above {limit:g}: the network holds an operation that is not seen (compiled code, a custom "
            "autograd function), or rounds more. Read the votes as approximate, or take integrated_gradients."))
    said = float((view.direction * view.linear.y).double().sum())
    if abs(said - view.exact) > 1e-4 * max(abs(view.exact), abs(said)):
        yield Text(key="curved_target", title="The target is no linear function of the output", picture=view.picture,
                   text=f"Votes and offset add up to its tangent, {said:.6g}, not to {view.exact:.6g}.", tone="warning")


def _of_zero(view: View) -> str:
    if bool((view.zero == 0).all()):
        return "What the network says of an input of zeros (its mean colour) with every decision held."
    return "What the network says of a black picture with every decision held."


def _classes(view: View) -> Table:
    y, linear = view.linear.y, view.linear
    rows: list[tuple[Cell, ...]] = []
    every = [(view.name, view.row, view.direction)]
    for other, row in zip(view.others, view.rows, strict=True):
        direction = torch.zeros_like(y)
        direction[0, other] = 1
        every.append((view.labels(other), row, direction))
        if other == view.others[0]:
            every.append((f"{view.name} - {view.labels(other)}", view.row - row, view.direction - direction))
    for name, row, direction in every:
        votes, offset = float((row * (linear.x[0] - view.zero)).double().sum()), view.offset(row, direction)
        said, both = float((direction * y).double().sum()), abs(votes) + abs(offset)
        rows.append((name, said, votes, offset, abs(offset) / both if both else None))
    return Table(key="classes", title="Who decides", picture=view.picture, rows=tuple(rows), columns=(
        Column("score"), Column("value", "score"), Column("pixels", "score"), Column("offset", "score"),
        Column("share of the offset")), note="The row of a difference says what decides between the two.")


def _votes(view: View) -> Iterator[Heatmap]:
    if not view.others:
        return
    own = view.linear.x[0] - view.zero
    maps = [(view.name, view.votes), *((view.labels(c), (row * own).sum(0).cpu())
                                       for c, row in zip(view.others, view.rows, strict=True))]
    top = max(float(np.quantile(votes.abs().float().numpy(), 0.995)) for _, votes in maps)
    for k, (name, votes) in enumerate(maps):
        yield Heatmap(key=f"votes-{k}", title=f"Votes for {name}", picture=view.picture, unit="score",
                      values=votes.float().numpy(), scale=(-top, top), note="On one scale with the other classes'.")


def _rows(view: View) -> Iterator[Picture]:
    if not view.drawn:
        return
    yield _picture(f"Row of {view.name}", "row", view.row, view.picture,
                   "What each pixel's colour is multiplied by; grey is 0.")
    for k, (other, row) in enumerate(zip(view.others, view.rows, strict=True)):
        yield _picture(f"Row of {view.labels(other)}", f"row-{k}", row, view.picture, "As above, on its own scale.")


def _picture(title: str, key: str, values: Tensor, picture: str, note: str, marks: Sequence[Mark] = ()) -> Picture:
    """A signed (C, H, W) as a picture: grey is 0, the 99.9 % quantile of the absolute values is black or white."""
    values = values.detach().float().cpu()
    values = values if len(values) == 3 else values.mean(0, keepdim=True).expand(3, -1, -1)
    top = float(np.quantile(values.abs().numpy(), 0.999)) or 1.0
    pixels = ((values / top).clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0).numpy()
    return Picture(key=key, title=title, picture=picture, pixels=pixels, note=note, marks=tuple(marks))


def _offsets(view: View) -> Iterator[AnyPanel]:
    placed = torch.zeros(view.size, dtype=torch.float64)
    unplaced = 0.0
    for term in view.terms:
        if term.map is None:
            unplaced += term.value
        else:
            placed += spread(term.map[None].cpu(), view.size, keep_sum=True)[0]
    offset = float((view.linear.offset * view.direction).double().sum())
    missing = offset - sum(term.value for term in view.terms)
    yield Heatmap(key="offset_map", title="Where the constants act", picture=view.picture, unit="score",
                  values=placed.float().numpy(), note=(
                      f"What the constants of layers with places add; {unplaced:.6g} more has no place."))
    votes = float((view.row * view.linear.x[0]).double().sum())
    steps = np.cumsum([votes, *(term.value for term in view.terms)])
    yield Curve(key="depth", title="The score as the constants of layer after layer are added", picture=view.picture,
                x=np.arange(len(steps), dtype=np.float32), y=steps[None].astype(np.float32), names=(view.name,),
                axes=(Axis("constants of so many steps of the network"), Axis("score")),
                note="It begins with F x, all pixels' part, and ends at the score.")
    largest = sorted(view.terms, key=lambda term: -abs(term.value))[:NAMED]
    rows: list[tuple[Cell, ...]] = [(f"{term.layer or 'the network itself'} ({term.kind})", term.value)
                                    for term in largest]
    rest = sum(term.value for term in view.terms) - sum(term.value for term in largest)
    rows += [("all other layers", rest)] if len(view.terms) > NAMED else []
    rows += [("constants of no layer", missing)] if abs(missing) > 1e-4 * sum(t.size for t in view.terms) else []
    yield Table(key="layers", title="The constants that add most", picture=view.picture, rows=tuple(rows),
                columns=(Column("layer"), Column("adds", "score")))


def _columns(view: View) -> Iterator[AnyPanel]:
    width, many = view.size[1], view.linear.y.ndim == 4
    for k, (pixel, column) in enumerate(zip(view.pixels, view.columns, strict=True)):
        y, x = divmod(pixel, width)
        if many:
            yield _picture(f"Column of pixel {x}, {y}", f"column-{k}", column, view.picture,
                           "What the output changes by when this pixel changes; grey is 0.")
    if many or not view.pixels:
        return
    best = view.columns.abs().flatten(1).amax(0).topk(min(NAMED, view.columns[0].numel())).indices.tolist()
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (view.labels(c), *(float(column.flatten()[c]) for column in view.columns)) for c in best)
    places = [divmod(pixel, width) for pixel in view.pixels]
    yield Table(key="columns", title="Columns: what single pixels do to the outputs", picture=view.picture, rows=rows,
                columns=(Column("output"), *(Column(f"pixel {x}, {y}", "score") for y, x in places)),
                note="A unit change of the input there, in the colour that the target answers to most.")


def _singular(view: View) -> Iterator[AnyPanel]:
    pairs = view.singular
    if pairs is None:
        return
    values = pairs.values.float().cpu().numpy()
    note = ("All singular values, from all rows." if pairs.exact else
            "The leading ones, by randomised subspace iteration: lower bounds, near for the first.")
    yield Curve(key="spectrum", title="Singular values of F", picture=view.picture, y=values[None], names=("value",),
                x=np.arange(1, len(values) + 1, dtype=np.float32), axes=(Axis("number"), Axis("singular value")),
                note=note)
    yield Number(key="stable_rank", title="Stable rank of F", picture=view.picture, value=pairs.stable_rank,
                 note="|F|^2 (Frobenius) / (largest singular value)^2" + ("." if pairs.exact else "; |F|^2 estimated."))
    if pairs.exact:
        shares = (pairs.values.square() / pairs.values.square().sum()).clamp_min(1e-300)
        yield Number(key="effective_rank", title="Effective rank of F", picture=view.picture,
                     value=float((-shares * shares.log()).sum().exp()),
                     note="exp of the entropy of the squared singular values' shares (after Roy and Vetterli 2007).")
    for k, (left, right) in enumerate(zip(pairs.left, pairs.right, strict=True)):
        yield _picture(f"Singular picture {k + 1} of the input", f"right-{k}", right, view.picture,
                       f"The change of the input that F carries on {values[k]:.4g} times; grey is 0.")
        if left.ndim == 3:
            yield _picture(f"Singular picture {k + 1} of the output", f"left-{k}", left, view.picture,
                           "What comes out for it; grey is 0.")
    if pairs.left.ndim == 2:
        best = pairs.left.abs().amax(0).topk(min(NAMED, pairs.left.shape[1])).indices.tolist()
        yield Table(key="left", title="What comes out for the singular pictures", picture=view.picture, columns=(
            Column("output"), *(Column(f"picture {k + 1}") for k in range(len(pairs.left)))),
            rows=tuple((view.labels(c), *(float(left[c]) for left in pairs.left)) for c in best))


def _held(view: View) -> Iterator[Text]:
    choices = view.linear.tape.choices
    if choices:
        counts = {choice: choices.count(choice) for choice in dict.fromkeys(choices)}
        said = "; ".join(f"{choice}{f' ({n} times)' if n > 1 else ''}" for choice, n in list(counts.items())[:NAMED])
        more = "; ..." if len(counts) > NAMED else "."
        yield Text(key="held", title="Held factors", picture=view.picture, text=(
            f"Of a product of two things that depend on the picture one is held: {said}{more}"))
