"""Detectors of generated pictures as the literature defines them, for study and not as truth: features and classifiers.

durall: azimuthal profile + linear SVM (Durall et al. 2019 and 2020). dzanic: power law of the far corners + kNN (Dzanic
et al. 2020). Their quirks are kept, as they are part of what was published: logarithms averaged, radii off centre,
thresholds in corner radii. They are judged by five folds in which copies of a picture stay together, so that no picture
is judged by a model that has seen it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xai import seeds, spectrum
from xai.errors import error
from xai.images import Image
from xai.panels import AnyPanel, Column, Table, Text
from xai.statistics import wilson

Array = npt.NDArray[Any]
FOLDS, FEWEST = 5, 10  # of each group at least
BINS, MOVING, FITTED = 200, 5, 0.85  # Dzanic's radial bins, moving mean, and where the fit begins (their call's value)
NEIGHBOURS = 5
WARNING = ("Do not trust such a detector. What it learns is the last upsampling step, the resizing, the compression or "
           "the bit depth that differ between these two folders, not that a picture is generated: with another last "
           "upsampling layer the same generator is no longer found (Chandrasegaran, Tran, Cheung 2021; their table "
           "reproduced small by examples/fourier_upsampling.py), and a photograph that was enlarged is. High accuracy "
           "here says that the two folders differ, and nothing about the next picture from elsewhere.")


def rounded_grey(image: Image) -> Array:
    """(n, n) grey from 0 to 255 in whole steps, as the published code reads files; the middle square."""
    values = np.rint(255 * spectrum.grey(image.pixels))
    n = min(values.shape)
    y, x = ((side - n) // 2 for side in values.shape)
    return np.asarray(values[y : y + n, x : x + n])


def azimuthal(values: Array) -> Array:
    """Durall's profile of (n, n): the mean over whole-numbered radii of 20 ln(|F| + 1e-8), no window, radii from
    ((n - 1) / 2, (n - 1) / 2) to the corners, without the innermost and the outermost ring. 43 numbers for n = 64, 88
    for 128, 179 for 256."""
    level = 20 * np.log(np.abs(np.fft.fftshift(np.fft.fft2(values))) + 1e-8)
    place = np.arange(len(values)) - (len(values) - 1) / 2
    ring = np.hypot(place[:, None], place).astype(np.int64)
    counts = np.bincount(ring.ravel())
    means = np.bincount(ring.ravel(), level.ravel())[counts > 0] / counts[counts > 0]
    return np.asarray(means[1:-1])


def durall(image: Image) -> Array:
    """The profile divided by its first bin, as published for CelebA and FaceForensics++."""
    found = azimuthal(rounded_grey(image))
    return np.asarray(found / (found[0] or 1.0))


def far_corner(values: Array) -> tuple[Array, Array]:
    """Dzanic's reduced spectrum of (n, n): radii over the corner's, and |F| averaged over 200 equal bins from half the
    corner radius (1 = corner), then over five bins; the radius is measured from one pixel beside zero frequency, as in
    the published code. Bins without a frequency are left out."""
    n = len(values)
    size = np.abs(np.fft.fftshift(np.fft.fft2(values)))
    place = np.arange(n) - (n // 2 - 1)
    radius = np.hypot(place[:, None], place)
    radius = radius / radius.max()
    return reduced(radius, size)


def reduced(radius: Array, size: Array) -> tuple[Array, Array]:
    """Means of `size` over 200 bins of radius from 0.5 to 1 and the moving mean of five; (mean radius, mean) by bin."""
    kept = radius > 0.5
    bins = np.minimum(((radius[kept] - 0.5) / 0.5 * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    there = counts > 0
    r = np.bincount(bins, radius[kept], BINS)[there] / counts[there]
    y = np.bincount(bins, size[kept], BINS)[there] / counts[there]
    weights = np.ones(MOVING)
    return r, np.convolve(y, weights, "same") / np.convolve(np.ones_like(y), weights, "same")


def fitted(radius: Array, size: Array) -> Array:
    """(b, y_i, y_f): the exponent of y = y_i (k / k_i)^b over the bins from 0.85 of the corner on, by least squares
    with y_i the first of them held fixed; y_f is the last bin."""
    from scipy.optimize import minimize_scalar

    used = radius >= FITTED
    r, y = (radius[used], size[used]) if used.sum() >= 3 else (radius[-3:], size[-3:])
    first = max(float(y[0]), 1e-12)
    ratio = np.log(r / r[0])
    found = minimize_scalar(lambda b: float(((y / first - np.exp(b * ratio)) ** 2).sum()), bounds=(-50, 50),
                            method="bounded", options={"xatol": 1e-9})
    return np.array([float(found.x), float(y[0]), float(y[-1])])


def dzanic(image: Image) -> Array:
    """(b, y_i, y_f) of a picture."""
    return fitted(*far_corner(rounded_grey(image)))


FEATURES: dict[str, Callable[[Image], Array]] = {"durall": durall, "dzanic": dzanic}


def classifier(name: str) -> Any:
    """An untrained scikit-learn pipeline for the features of that name."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    last = SVC(kernel="linear") if name == "durall" else KNeighborsClassifier(NEIGHBOURS)
    return make_pipeline(StandardScaler(), last)


def scores_of(model: Any, features: Array) -> Array:
    """(n,) the higher the more of the second group; the sign of SVM scores and 0.5 of kNN shares decide."""
    if hasattr(model, "decision_function"):
        return np.asarray(model.decision_function(features))
    return np.asarray(model.predict_proba(features)[:, 1] - 0.5)


def listed(text: str) -> tuple[str, ...]:
    """The names in a text separated by commas; "none" is none."""
    return tuple(dict.fromkeys(n.strip() for n in text.split(",") if n.strip() and n.strip() != "none"))


def check(text: str, method: str) -> None:
    """Raise XaiError for a detector that is not there."""
    for name in listed(text):
        if name not in FEATURES:
            raise error(f"{method}.detectors", f"of {', '.join(FEATURES)}, or none", repr(name),
                        "NPR's map and its classifier are the method npr")


# --- judging ---
@dataclass(frozen=True)
class Judged:
    """How well a detector tells two groups apart: hits of n pictures, average precision for the second group, and the
    hits of the same procedure with the groups' names shuffled."""

    hits: int
    n: int
    precision: float
    control: int

    @property
    def row(self) -> tuple[float, float, float, float, float]:
        """Accuracy, its 95 % interval by Wilson, average precision, accuracy of the control."""
        low, high = wilson(self.hits / self.n, self.n)
        return self.hits / self.n, low, high, self.precision, self.control / self.n


def folds(hashes: Sequence[str], seed: int, count: int = FOLDS) -> Array:
    """(n,) a fold for each picture, by its content: copies fall together, and the order does not matter."""
    unique = sorted(set(hashes), key=lambda one: (seeds.derive(seed, one, "fold"), one))
    of = {one: k % count for k, one in enumerate(unique)}
    return np.array([of[one] for one in hashes])


def cross_validated(name: str, features: Array, truth: Array, fold: Array, shuffled: Array) -> Judged:
    """Each picture judged by a classifier trained on the folds that it is not in; the same for shuffled names."""
    from sklearn.metrics import average_precision_score

    found = np.zeros((2, len(truth)))
    for k in np.unique(fold):
        test = fold == k
        for row, names in enumerate((truth, shuffled)):
            if len(np.unique(names[~test])) == 2:
                found[row, test] = scores_of(classifier(name).fit(features[~test], names[~test]), features[test])
    hits = ((found > 0) == np.stack([truth, shuffled])).sum(1)
    return Judged(int(hits[0]), len(truth), float(average_precision_score(truth, found[0])), int(hits[1]))


def judged(groups: Sequence[Sequence[tuple[str, dict[str, Array]]]], first: str, second: str,
           seed: int) -> Iterator[AnyPanel]:
    """The detectors on two groups of (hash, name -> features): their table, and why not to trust it."""
    few = min(map(len, groups))
    if few < FEWEST:
        yield Text(key="detectors", title="Detectors", text=f"No detector was trained: it takes {FEWEST} pictures of "
                   f"each group; there are {len(groups[0])} of {first} and {len(groups[1])} of {second}.")
        return
    balanced = [evened(group, few, seed) for group in groups]
    together = [one for group in balanced for one in group]
    truth = np.repeat([0, 1], [len(group) for group in balanced])
    fold = folds([one[0] for one in together], seed)
    shuffled = truth[np.argsort([seeds.derive(seed, one[0], str(i), "shuffle") for i, one in enumerate(together)])]
    rows = []
    for name in together[0][1]:
        features = np.stack([one[1][name] for one in together])
        rows.append((name, *cross_validated(name, features, truth, fold, shuffled).row))
    yield Table(key="detectors", title=f"Detectors trained to tell {second} from {first}", rows=tuple(rows),
                columns=(Column("detector"), Column("accuracy"), Column("low"), Column("high"),
                         Column("average precision"), Column("accuracy, names shuffled")),
                note=f"{few} pictures of each group, five folds, each picture judged by a model that has seen neither "
                     "it nor a copy of it; 95 % interval by Wilson. Names shuffled: the same procedure where nothing "
                     "can be learnt, about 0.5.")
    yield Text(key="trust", title="Why not to trust a detector", text=WARNING, tone="warning")


def evened(group: Sequence[Any], count: int, seed: int) -> list[Any]:
    """So many of a group, chosen by their content, in their order."""
    order = sorted(range(len(group)), key=lambda i: (seeds.derive(seed, group[i][0], "evened"), i))[:count]
    return [group[i] for i in sorted(order)]
