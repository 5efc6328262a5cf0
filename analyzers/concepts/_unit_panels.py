"""What a page shows of a dissection: counts beside chance, a table of all units, pictures with masks of the best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image as Pil

from analyzers.concepts._scores import Labels, by_category, unique
from xai.panels import AnyPanel, Axis, Cell, Column, Curve, Number, Picture, Table, Text
from xai.result import Verdict
from xai.subject import Subject

Array = np.ndarray
STEPS = 101  # of the curve over IoU
TILE, GAP, GREY = 112, 4, 128  # of a strip: pixels of a picture and between two, the level between them
FADED = 0.25  # of a picture's own level outside of the mask
SOME = 5  # concepts that are named for a unit


def overall(found: Mapping[str, Labels], asked: Mapping[str, Any], state: Mapping[str, Array],
            short: Mapping[str, Array]) -> Iterator[AnyPanel | Verdict]:
    """Numbers of the first layer, counts of all by category, detectors at every IoU, and what it rests on."""
    labels = next(iter(found.values()))
    least, count = asked["least"], int(state["count"][1])
    detectors = labels.detectors(least)
    chance = (labels.null > least).sum(1)
    low, high = (float(np.quantile(chance, q)) for q in (0.025, 0.975)) if len(chance) else (None, None)
    yield Number(key="unique", title="Unique detectors", value=unique(detectors, labels.concept),
                 note=f"Different concepts that are the label of a detector, of {len(labels.concepts)} that the "
                      f"{count} pictures show.")
    yield Number(key="detectors", title="Detectors", value=int(detectors.sum()), unit=f"of {len(detectors)} units",
                 note=f"Units whose best IoU is above {least:g}. The share of a unit's mask is about "
                      f"{asked['quantile']:g}, so a concept that covers more than "
                      f"{asked['quantile'] / max(least, 1e-9):.3g} of the pixels has no detector, however good.")
    if len(chance):
        yield Number(key="chance", title="Detectors by chance", value=float(chance.mean()), low=low, high=high,
                     note=f"The same with the concepts of other pictures, {len(chance)} times; 95 % of the times. "
                          "Positions that many pictures share (sky above) stay, so this is no zero.")
    yield _verdict(detectors, labels)
    yield _reliability(labels, detectors, count)
    yield _categories(found, least)
    yield _curve(labels)
    yield _rests(asked, short, labels)


def _verdict(detectors: Array, labels: Labels) -> Verdict:
    many, sure = int(detectors.sum()), int((detectors & labels.beyond()).sum())
    if not len(labels.null):
        return Verdict(name="detectors beyond chance", value=None, threshold=None, passed=None,
                       sentence="No permutations were made.", advice="Set permutations=20 and give more than one "
                       "picture.")
    share = sure / many if many else 0.0
    said = (f"{sure} of {many} detectors match their concept better than in any of {len(labels.null)} permutations of "
            "the pictures' concepts." if many else "No unit is a detector of any concept.")
    passed = many > 0 and share >= 0.5
    return Verdict(name="detectors beyond chance", value=share, threshold=0.5, passed=passed, sentence=said,
                   advice="" if passed else "Take another layer or more pictures, and compare with --weights random.")


def _reliability(labels: Labels, detectors: Array, count: int) -> Number:
    same = float(labels.stable[detectors].mean()) if detectors.any() else None
    held = float(np.median(labels.held[detectors])) if detectors.any() else None
    return Number(key="stable", title="Labels that both halves of the pictures give", value=same, unit="of detectors",
                  note="Each half labels the units by itself." + (
                      f" The median IoU of a label from one half of {count} pictures, measured on the other, is "
                      f"{held:.3f}." if held is not None else " There is no detector."))


def _categories(found: Mapping[str, Labels], least: float) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, labels in found.items():
        chance = _chance(labels, least)
        for category, concepts, detectors, different, alone, best in by_category(labels, least):
            rows.append((name, category, concepts, detectors, different, alone, round(best, 4), None))
        all_, alone = labels.detectors(least), sum(int(row[5] or 0) for row in rows if row[0] == name)
        rows.append((name, "all", len(labels.concepts), int(all_.sum()), unique(all_, labels.concept), alone,
                     round(float(labels.iou.max()), 4), chance))
    columns = ("layer", "category", "concepts", "detectors", "unique", "unique, each category by itself", "best IoU",
               "detectors by chance")
    return Table(key="categories", title="Detectors by layer and category", rows=tuple(rows),
                 columns=tuple(map(Column, columns)), note="A unit counts under its best concept; in the column `by "
                 "itself` it has a label in every category, and a concept counts once.")


def _chance(labels: Labels, least: float) -> float | None:
    return round(float((labels.null > least).sum(1).mean()), 2) if len(labels.null) else None


def _curve(labels: Labels) -> Curve:
    top = max([float(labels.iou.max()), 1e-3, *labels.null.max(1, initial=0)])
    x = np.linspace(0, top, STEPS)
    mine = (labels.iou[:, None] > x).sum(0).astype(float)
    y, low, high, names = [mine], [mine], [mine], ["this network"]
    if len(labels.null):
        chance = (labels.null[:, :, None] > x).sum(1).astype(float)
        y.append(chance.mean(0))
        low.append(np.quantile(chance, 0.025, axis=0))
        high.append(np.quantile(chance, 0.975, axis=0))
        names.append("by chance")
    return Curve(key="curve", title="Units whose best IoU is above a value", x=x, y=np.stack(y), low=np.stack(low),
                 high=np.stack(high), names=tuple(names), axes=(Axis("IoU"), Axis("units")))


def _rests(asked: Mapping[str, Any], short: Mapping[str, Array], labels: Labels) -> Text:
    count, size = int(short["count"][1]), tuple(int(v) for v in short["size"])
    areas = short["pixels"].sum(0) / (count * size[0] * size[1])
    wide = [f"{name} ({area:.0%})" for (_, name), area in zip(labels.concepts, areas, strict=True)
            if area * asked["least"] > asked["quantile"]]
    return Text(key="rests", title="What the labels rest on", text=(
        f"{count} pictures, masks and concepts at {size[0]} x {size[1]} pixels; thresholds are exact quantiles of the "
        f"layer's own activations. Of {len(labels.concepts)} concepts these cover too much to be detected at this "
        f"quantile: {', '.join(wide[:20]) or 'none'}{', ...' if len(wide) > 20 else ''}. AUC: how well the unit's "
        f"{asked['pool']} over places tells pictures that show a concept from others, for concepts in at least "
        f"{asked['rare']} of them; as the best of many it is biased upwards, so its value for the label of one half of "
        "the pictures on the other stands beside it. A label says what a unit overlaps with most, of what the data "
        "name; the unit may respond to more."))


def table(layer: str, labels: Labels, least: float, words: Sequence[tuple[str, float]] | None) -> Table:
    """Every unit of a layer, the best first."""
    names = ["unit", "concept", "IoU", "label of one half", "its IoU on the other", "p",
             "share of the mask", "next concepts", "best AUC", "AUC", "AUC held out", "threshold",
             *(["word", "soft-WPMI"] if words else [])]
    order = np.argsort(-labels.iou, kind="stable")
    p = labels.p() if len(labels.null) else None
    rows = []
    for unit in order:
        row: tuple[Cell, ...] = (int(unit), *_label(labels, int(unit), least),
                                 None if p is None else round(float(p[unit]), 4), round(float(labels.share[unit]), 4),
                                 _next(labels, int(unit)), *_auc(labels, int(unit)), float(labels.thresholds[unit]))
        rows.append(row + ((words[unit][0], round(words[unit][1], 3)) if words else ()))
    return Table(key=f"units {layer}", title=f"All units of {layer}", columns=tuple(map(Column, names)),
                 rows=tuple(rows), note=f"A unit is a detector where the IoU is above {least:g}; p: the share of "
                                        "permutations (and itself) whose best IoU is as large.")


def _label(labels: Labels, unit: int, least: float) -> tuple[Cell, ...]:
    value = float(labels.iou[unit])
    if value <= 0:
        return None, 0.0, None, None
    category, name = labels.concepts[labels.concept[unit]]
    return (f"{name} ({category})", round(value, 4), labels.concepts[labels.chosen[unit]][1],
            round(float(labels.held[unit]), 4))


def _next(labels: Labels, unit: int) -> str:
    scores = labels.table[unit]
    order = np.argsort(-scores, kind="stable")[1:SOME]
    return ", ".join(f"{labels.concepts[c][1]} {scores[c]:.3f}" for c in order if scores[c] > 0)


def _auc(labels: Labels, unit: int) -> tuple[Cell, ...]:
    if labels.auc is None:
        return None, None, None
    best = int(np.nan_to_num(labels.auc[unit], nan=-1).argmax())
    held = labels.auc_held
    return (labels.concepts[best][1], round(float(labels.auc[unit, best]), 4),
            None if held is None or np.isnan(held[unit]) else round(float(held[unit]), 4))


# --- pictures ---
def strips(subject: Subject, state: Mapping[str, Array], labels: Labels, count: int) -> Iterator[Picture]:
    """For the units of the highest IoU the pictures that excite them most, dimmed outside of the unit's mask. The
    pictures are read again, not run again."""
    model, images = subject.one_model(), subject.images
    assert images is not None
    size = tuple(int(v) for v in state["size"])
    seen: dict[int, Array] = {}
    for unit in np.argsort(-labels.iou, kind="stable")[:count]:
        if labels.iou[unit] <= 0:
            return
        tiles = []
        for row, bits in zip(state["0/best"][unit], state["0/masks"][unit], strict=True):
            if row < 0:
                continue
            place = int(state["place"][row])
            if place not in seen:
                seen[place] = _tile(model.preprocessing(images[place]).seen)
            mask = np.unpackbits(bits, count=size[0] * size[1]).reshape(size)
            tiles.append(_dimmed(seen[place], mask))
        category, name = labels.concepts[labels.concept[unit]]
        yield Picture(key=f"unit {unit}", title=f"Unit {unit}: {name} ({category}), IoU {labels.iou[unit]:.3f}",
                      pixels=_row(tiles), note="Highest activations first; bright where above the threshold.")


def _tile(pixels: Array) -> Array:
    """(TILE, w, 3) uint8, of the picture's own aspect."""
    wide = max(1, round(TILE * pixels.shape[1] / pixels.shape[0]))
    return np.asarray(Pil.fromarray(pixels).resize((wide, TILE), Pil.Resampling.BILINEAR))


def _dimmed(tile: Array, mask: Array) -> Array:
    large = np.asarray(Pil.fromarray(mask * np.uint8(255)).resize(tile.shape[1::-1], Pil.Resampling.NEAREST)) > 0
    return np.where(large[..., None], tile, (tile * FADED).astype(np.uint8))


def _row(tiles: Sequence[Array]) -> Array:
    gap = np.full((TILE, GAP, 3), GREY, np.uint8)
    parts = [part for tile in tiles for part in (tile, gap)][:-1]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))
