"""What a dissection's counts say of each unit: its concept, how sure that is, and the scores of two other methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xai.concept_maps import Concept
from xai.errors import error

Array = np.ndarray
UNITS = 64  # whose pictures are ranked at once
TOP = 100  # pictures of a unit that soft-WPMI looks at
HIGH, LOW = 0.998, 0.97  # its weights of the first and the last of them
SHARP = 10  # its softmax over the words: of so many times the cosine


def iou(shared: Array, area: Array, concepts: Array, of: Array) -> Array:
    """(..., units, C) float64: shared pixels (..., units, C) over the union of a unit's mask and a concept.

    area (..., units, K): pixels of the masks, for each category only in pictures annotated for it; concepts (..., C):
    pixels of the concepts; of (C,): the category of each. 0 where both are empty.
    """
    union = area[..., of] + concepts[..., None, :] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros(union.shape), where=union > 0))


@dataclass(frozen=True)
class Labels:
    """Of every unit: `concept` its best one's number, `iou` (units,) with it; `table` (units, C) with all; `chosen` the
    best on the even pictures and `held` its IoU on the odd ones; `stable`: whether the odd ones choose the same; `null`
    (permutations, units): the best IoU with the concepts of other pictures; `share`: of the unit's mask, what its
    concept covers; `auc` (units, C) or None, with `auc_held` that of the even pictures' best on the odd ones."""

    concepts: tuple[Concept, ...]
    table: Array
    concept: Array
    iou: Array
    chosen: Array
    held: Array
    stable: Array
    null: Array
    share: Array
    auc: Array | None
    auc_held: Array | None
    thresholds: Array

    def detectors(self, least: float) -> Array:
        """(units,) bool: IoU strictly above `least`."""
        return np.asarray(self.iou > least)

    def p(self) -> Array:
        """(units,): the share of permutations, itself among them, whose best IoU is as large."""
        return np.asarray((1 + (self.null >= self.iou).sum(0)) / (1 + len(self.null)))

    def beyond(self) -> Array:
        """(units,) bool: IoU above that of every permutation."""
        return np.asarray((self.null < self.iou).all(0))

    def categories(self) -> tuple[str, ...]:
        """In alphabetical order."""
        return tuple(sorted({category for category, _ in self.concepts}))

    def category(self) -> Array:
        """(C,): the category of each concept, by its place in `categories`."""
        names = self.categories()
        return np.array([names.index(category) for category, _ in self.concepts])


def labelled(state: Mapping[str, Array], layer: int, concepts: tuple[Concept, ...], rare: int) -> Labels:
    """The labels of one layer's units from the sums of a dissection."""
    shared, area, pixels = (state[name] for name in (f"{layer}/shared", f"{layer}/area", "pixels"))
    of = state["of"]
    table = iou(shared.sum(0), area.sum(0), pixels.sum(0), of)
    units, best = np.arange(len(table)), table.argmax(1)
    halves = iou(shared, area, pixels, of)
    chosen, other = halves.argmax(2)
    others = state["null pixels"]  # none where no block held two pictures: then nothing was compared
    null = np.array([iou(one, its, others, of).max(1) for one, its in
                     zip(state[f"{layer}/null"], state[f"{layer}/null area"], strict=True)
                     if others.any()]).reshape(-1, len(table))
    mask = area.sum(0)[units, of[best]]
    share = np.divide(shared.sum(0)[units, best], mask, out=np.zeros(len(table)), where=mask > 0)
    seen = int(state["count"][1])
    pooled, shown = state[f"{layer}/pooled"][:, :seen], state["shown"][:seen].astype(bool)
    scores = aucs(pooled, shown, rare)
    first, second = aucs(pooled[:, ::2], shown[::2], rare), aucs(pooled[:, 1::2], shown[1::2], 1)
    auc_held = None
    if scores is not None and first is not None and second is not None:
        auc_held = second[units, np.nan_to_num(first, nan=-1).argmax(1)]
    return Labels(concepts, table, best, table[units, best], chosen, halves[1][units, chosen], chosen == other, null,
                  share, scores, auc_held, state[f"{layer}/thresholds"])


def aucs(values: Array, shown: Array, least: int) -> Array | None:
    """(units, C): the area under the ROC curve of values (units, n) as a score of whether a picture shows a concept,
    shown (n, C) bool; ties count half. NaN for concepts that fewer than `least` pictures show, or fewer than `least` do
    not; None where that is all of them. (INVERT, Bykov et al. 2023: U / (n1 * n0).)"""
    from scipy.stats import rankdata

    with_, without = shown.sum(0), (~shown).sum(0)
    known = (with_ >= least) & (without >= least)
    if not known.any():
        return None
    table = np.full((len(values), shown.shape[1]), np.nan)
    columns = shown[:, known].astype(np.float64)
    n1, n0 = with_[known], without[known]
    for first in range(0, len(values), UNITS):
        ranks = rankdata(values[first : first + UNITS], axis=1)
        table[first : first + UNITS, known] = (ranks @ columns - n1 * (n1 + 1) / 2) / (n1 * n0)
    return table


# --- CLIP-Dissect ---
@dataclass(frozen=True)
class Embedded:
    """Unit vectors of the pictures (n, d) and of the words (m, d), by a model of both that the user has."""

    pictures: Array
    words: tuple[str, ...]
    texts: Array

    @classmethod
    def of(cls, file: str, words: str, count: int) -> Embedded:
        """From a .safetensors file with `images` (n, d), in the order of the data, and `texts` (m, d), and a text file
        with one word a line. Raises XaiError where they are damaged or do not fit."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(Path(file).expanduser().read_bytes())
        except (OSError, SafetensorError) as cause:
            raise error("the embeddings", "a .safetensors file", f"{file!r} ({cause})", "Check the file") from cause
        try:
            listed = tuple(Path(words).expanduser().read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as cause:
            raise error("the words of the embeddings", "a text file, one a line", f"{words!r} ({cause})",
                        "Name it with --set words=words.txt") from cause
        if missing := {"images", "texts"} - set(tensors):
            raise error("the embeddings", "tensors named images and texts", f"none named {sorted(missing)[0]}",
                        "Save both into one file")
        pictures, texts = tensors["images"].astype(np.float64), tensors["texts"].astype(np.float64)
        if pictures.ndim != 2 or texts.ndim != 2 or pictures.shape[1] != texts.shape[1]:
            raise error("the embeddings", "(n, d) of images and (m, d) of texts", f"{pictures.shape} and {texts.shape}",
                        "Take both from one model")
        if len(pictures) != count or len(texts) != len(listed) or not len(listed):
            raise error("the embeddings", f"of the {count} pictures, and one text a word", f"{len(pictures)} images, "
                        f"{len(texts)} texts and {len(listed)} words", "Embed the same pictures in the same order")
        if not (np.isfinite(pictures).all() and np.isfinite(texts).all()):
            raise error("the embeddings", "finite", "NaN or infinity", "Compute them again")
        return cls(_unit(pictures), listed, _unit(texts))


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12))


def soft_wpmi(values: Array, likeness: Array) -> Array:
    """(units, m): CLIP-Dissect's score (soft-WPMI, Oikarinen and Weng 2023) of each word, from values (units, n) of the
    units on n pictures and the cosines (n, m) of pictures and words; only the order of a unit's values counts."""
    from scipy.special import logsumexp, softmax

    match = softmax(SHARP * likeness, axis=1)
    top = min(TOP, values.shape[1])
    order = np.argsort(-values, axis=1, kind="stable")[:, :top]
    p = HIGH - np.arange(top) / top * (HIGH - LOW)
    said = np.stack([np.log(1 + p[:, None] * (match[rows] - 1) + 1e-7).sum(0) for rows in order])
    return np.asarray(said - (logsumexp(said, axis=0) - np.log(len(said))))


def unique(found: Array, concepts: Array) -> int:
    """How many different concepts the found units have."""
    return len(set(concepts[found].tolist()))


def by_category(labels: Labels, least: float) -> list[tuple[str, int, int, int, int, float]]:
    """(category, concepts, detectors, unique, unique by itself, best IoU), a row a category: the concepts that the data
    show; detectors whose best concept is of it and how many different ones; how many if a unit had a label in every
    category by itself."""
    of, found = labels.category(), labels.detectors(least)
    rows = []
    for k, name in enumerate(labels.categories()):
        here = found & (of[labels.concept] == k)
        alone = labels.table[:, of == k]
        own = alone.argmax(1)[alone.max(1) > least]
        rows.append((name, int((of == k).sum()), int(here.sum()), unique(here, labels.concept), len(set(own.tolist())),
                     float(alone.max())))
    return rows

