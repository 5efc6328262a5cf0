"""The panels of activation maximisation: pictures, their way, the objective's curve, what they are worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analyzers.visualization._ascent import Found, Plan
from analyzers.visualization._objectives import Unit
from analyzers.visualization._parameterisation import Maco, Parameterisation
from analyzers.visualization._quality import FRESH, Fresh
from xai.model import Model
from xai.panels import AnyPanel, Axis, Cell, Column, Curve, Picture, Table, Text
from xai.result import Verdict

GAP = 2  # pixels between the frames of a strip
SUPER = 3.0  # times the best of the natural pictures: a super-stimulus


@dataclass(frozen=True)
class Setting:
    """What holds for all pictures. natural: (C, H, W/2+1) magnitudes of natural pictures, and whose they are."""

    size: tuple[int, int]
    how: Parameterisation
    natural: Tensor
    source: str


@dataclass(frozen=True)
class Made:
    """One picture. found, row: its job, and where in it; first, reached: the unit's value at the start and at the end,
    without transforms; others, row: under other augmentations; apart: its spectrum from natural ones, in decades; seen:
    the probability that each other model gives its class, NaN where it has none."""

    unit: Unit
    name: str
    row: int
    found: Found
    first: float
    reached: float
    others: Fresh
    apart: float
    seen: tuple[float, ...]

    @property
    def dead(self) -> bool:
        """See `Found.dead`."""
        return self.found.dead[self.row]


def panels(model: Model, judges: Sequence[Model], made: Sequence[Made], best: Mapping[str, float], count: int,
           setting: Setting, plan: Plan) -> Iterator[AnyPanel | Verdict]:
    """All of it. best: by the units' words the largest value among `count` natural pictures; empty where none is
    given."""
    titles = [_title(one, model, len(made)) for one in made]
    yield Text(key="how", title="How the pictures were made", text=_how(setting, plan))
    yield from _dead(made, titles)
    for i, (one, title) in enumerate(zip(made, titles, strict=True)):
        yield Picture(key=f"picture-{i}", title=title, note=_note(one, best),
                      pixels=pixels(one.found.pictures[one.row]))
    for i, (one, title) in enumerate(zip(made, titles, strict=True)):
        steps = ", ".join(str(step) for step, _ in one.found.frames)
        yield Picture(key=f"frames-{i}", title=f"{title}: its way", note=f"After steps {steps}.",
                      pixels=strip([pixels(shown[one.row]) for _, shown in one.found.frames]))
    if isinstance(setting.how, Maco):
        for i, (one, title) in enumerate(zip(made, titles, strict=True)):
            yield Picture(key=f"touched-{i}", title=f"{title}: where the gradient went", pixels=_weight(one),
                          note="The sum over the steps of the gradient's absolute value; white is the 80th percentile.")
    yield Curve(key="course", title="The objective over the steps", names=tuple(titles),
                x=np.arange(1, plan.steps + 1, dtype=np.float32),
                y=np.stack([one.found.course[:, one.row].numpy() for one in made]).astype(np.float32),
                axes=(Axis("step"), Axis("objective")), note="Of the transformed picture, as it is climbed.")
    yield _worth(made, titles, judges, best, count, setting)
    yield from _verdicts(made, titles)


def pixels(picture: Tensor) -> np.ndarray:
    """(H, W, 3) uint8 of a picture (C, H, W) in [0, 1], (H, W) where it has fewer than three channels."""
    values = (picture.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(values[:3].permute(1, 2, 0).numpy() if len(values) >= 3 else values[0].numpy())


def strip(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Side by side, white between them."""
    gap = np.full((frames[0].shape[0], GAP, *frames[0].shape[2:]), 255, dtype=np.uint8)
    return np.concatenate([part for frame in frames for part in (gap, frame)][1:], axis=1)


def _weight(one: Made) -> np.ndarray:
    touched = one.found.touched[one.row]
    most = float(touched.flatten().kthvalue(max(1, round(0.8 * touched.numel()))).values)
    return np.asarray((touched / max(most, 1e-30)).clamp(0, 1).mul(255).round().to(torch.uint8).numpy())


def _title(one: Made, model: Model, count: int) -> str:
    index = one.unit.class_index
    named = f"{model.class_name(index)} (class:{index})" if index is not None and model.labels else one.unit.text
    copy = one.name.rpartition(" #")[2]
    return named if copy == "0" else f"{named}, copy {int(copy) + 1}"


def _note(one: Made, best: Mapping[str, float]) -> str:
    if one.dead:
        return "Dead: this picture says nothing."
    said = f"From {one.first:.4g} to {one.reached:.4g}."
    most = best.get(one.unit.text)
    if most is not None:
        times = f", {one.reached / most:.3g} times that" if most > 0 else ""
        said += f" The best natural picture: {most:.4g}{times}{': a super-stimulus' if _beyond(one, most) else ''}."
    return said


def _beyond(one: Made, most: float) -> bool:
    return most > 0 and one.reached >= SUPER * most


def _how(setting: Setting, plan: Plan) -> str:
    height, width = setting.size
    name = type(setting.how).__name__.lower()
    under = f"{plan.draws} draw(s) a step of {plan.stack} transforms"
    charged = ", ".join(f"{key} {weight:g}" for key, weight in plan.penalties.items() if weight) or "none"
    return (f"{height} x {width} pixels, {name}, {plan.steps} steps of {plan.rate:g}, {under}, noise "
            f"{plan.noise:g}; penalties: {charged}. Natural magnitudes: {setting.source}. A picture that excites a "
            "unit is a hypothesis about it, not evidence: look at what natural pictures excite it, too.")


def _dead(made: Sequence[Made], titles: Sequence[str]) -> Iterator[Text]:
    names = [f"{title} (always {one.reached:.4g})" for one, title in zip(made, titles, strict=True) if one.dead]
    if names:
        yield Text(key="dead", title="Dead units", tone="bad", text=f"These gave the same value at every step, or no "
                   f"gradient left them: {'; '.join(names)}. Their pictures are noise.")


def _worth(made: Sequence[Made], titles: Sequence[str], judges: Sequence[Model], best: Mapping[str, float],
           count: int, setting: Setting) -> Table:
    columns = [Column("unit"), Column("start"), Column("reached"), Column(f"mean under {FRESH} other augmentations"),
               Column("probability under them", "probability"), Column("share of them where it is the first class"),
               Column("spectrum from natural", "decades")]
    columns += [Column(f"probability in {judge.spec}", "probability") for judge in judges]
    columns += [Column(f"best of {count} natural pictures"), Column("times that")] if best else []
    rows: list[tuple[Cell, ...]] = []
    for one, title in zip(made, titles, strict=True):
        i = one.row
        cells = [one.first, one.reached, *(float(v[i]) for v in (one.others.values, one.others.probability,
                                                                 one.others.top)), one.apart, *one.seen]
        if best:
            most = best[one.unit.text]
            cells += [most, one.reached / most if most > 0 else math.nan]
        rows.append((f"{title}, dead" if one.dead else title, *map(_plain, cells)))
    return Table(key="worth", title="What the pictures are worth", columns=tuple(columns), rows=tuple(rows),
                 note="Other augmentations: crops of half to all of the area, mirrored, 0.8 to 1.2 times as bright. "
                      f"Spectrum: root mean square over rings of the log10 magnitudes, natural ones {setting.source}.")


def _plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _verdicts(made: Sequence[Made], titles: Sequence[str]) -> Iterator[Verdict]:
    for name, wrong, good, bad, advice in (
        ("alive", [one.dead for one in made], "Every unit answered to its picture.", "dead",
         "Name other units, or a layer before the activation"),
        ("finite", [not bool(one.found.course[:, one.row].isfinite().all()) for one in made],
         "Every value is a number.", "not a number", "Look at the weights"),
    ):
        names = [title for title, is_so in zip(titles, wrong, strict=True) if is_so]
        said = f"{len(names)} of {len(made)} units: {bad} ({', '.join(names[:5])}{', ...' if names[5:] else ''})."
        yield Verdict(name=name, value=float(len(names)), threshold=0.0, passed=not names,
                      sentence=said if names else good, advice=f"{advice}." if names else "")
