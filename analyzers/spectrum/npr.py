"""NPR: how each pixel differs from the first of its 2 x 2 cell, where upsampling leaves traces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from analyzers.spectrum import _npr
from analyzers.spectrum._detectors import FEWEST, WARNING, Judged, evened, folds
from analyzers.spectrum._groups import GROUPED, LEAST, Group, Groups, grouped, spaced
from xai import seeds
from xai.analyzer import Analyzer, param
from xai.panels import AnyPanel, Axis, Column, Matrix, Picture, Table, Text
from xai.result import Verdict
from xai.statistics import interval
from xai.subject import Subject

PLACES = tuple(f"row {a}, column {b}" for a, b in _npr.PHASES)
DRAWN = 2  # maps a group that are shown
HALVES = 2


@dataclass
class Found:
    """Of a group: mean absolute map and share of zeros by place, of each picture up to `most`; maps to show; and inputs
    of the network with the pictures' hashes."""

    stats: list[np.ndarray]
    shown: list[np.ndarray]
    inputs: list[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class NPR(Analyzer):
    """NPR: how each pixel differs from the first of its 2 x 2 cell, where upsampling by two leaves traces.

    NPR(x) = x - up(down(x)), down taking the top left pixel of each 2 x 2 cell and up repeating it: the map is 0 at
    that pixel of every cell, and everywhere for a picture that was enlarged by repeating pixels. The mean absolute
    value and the share of exact zeros at the other three places need no training. Of two groups a network of three
    convolutions is trained on the map (times 2/3, over ImageNet's standard deviations, as published; the published
    network is a cut ResNet-50), on one half of the pictures and judged on the other, then the reverse.

    Reads     images
    Yields    the map's statistics by place of each group, some maps, and for two groups how well the network tells
              them apart, beside the same with shuffled names, with the reason not to trust it
    Raises    XaiError if no picture of a group is usable, or two groups are asked for and are not there
    Cost      no forwards of a model; each picture is read once for its size and up to `most` a group once more; memory
              holds up to `most` maps of side x side pixels a group (0.2 MB each at 128)
    Reference Tan et al. 2024, "Rethinking the Up-Sampling Operations in CNN-based Generative Network for Generalizable
              Deepfake Detection", arXiv:2312.10461
    """

    needs: ClassVar[frozenset[str]] = frozenset({"images"})
    shares: ClassVar[bool] = True

    groups: str = param("auto", "what makes two groups: source (two --data), label (two classes), none, or auto: the "
                                "first of these that there are two of", choices=GROUPED)
    side: int = param(128, "side in pixels of the square that the network sees", low=LEAST)
    most: int = param(500, "pictures a group, evenly spaced", low=2)

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """Statistics of each group first, then the network."""
        found = grouped(subject, self.groups, 0, self.name())
        groups = Groups(tuple(Group(g.name, tuple(spaced(g.members, self.most))) for g in found.groups), found.shape,
                        found.cut)
        each = [self._read(subject, groups, group) for group in groups.groups]
        yield groups.counts()
        yield from self._statistics(groups, each)
        for group, one in zip(groups.groups, each, strict=True):
            for k, pixels in enumerate(one.shown):
                yield Picture(key=f"map-{group.name}-{k}", title=f"NPR of a picture of {group.name}", pixels=pixels,
                              note="Mean absolute value over the channels; white: its 99th percentile.")
        if len(each) == 2:
            yield from self._judged(groups, each, subject.seed)

    def _read(self, subject: Subject, groups: Groups, group: Group) -> Found:
        assert subject.images is not None
        found = Found([], [], [])
        for image in groups.pictures(subject.images, group):
            values = _npr.npr(image.pixels)
            found.stats.append(_npr.by_phase(values))
            found.inputs.append((image.hash, _npr.network_input(values, self.side)))
            if len(found.shown) < DRAWN:
                found.shown.append(_npr.picture(values))
        return found

    def _statistics(self, groups: Groups, each: list[Found]) -> Iterator[AnyPanel]:
        rows, matrix = [], []
        for group, one in zip(groups.groups, each, strict=True):
            stats = np.stack(one.stats)
            matrix.append(255 * stats[:, 0].mean(0))
            for k, place in enumerate(PLACES):
                values = torch.from_numpy(255 * stats[:, 0, k])
                low, high = interval(values)
                rows.append((group.name, place, len(stats), float(values.mean()), *(_known(v) for v in (low, high)),
                             float(stats[:, 1, k].mean())))
        yield Table(key="places", title="The map by place in a 2 x 2 cell", rows=tuple(rows), columns=(
            Column("group"), Column("place"), Column("pictures"), Column("mean |NPR|", "of 255"), Column("low"),
            Column("high"), Column("exact zeros", "probability")),
            note="Differences to the top left pixel, whose own place is 0 by definition. Mean over pictures with its "
                 "95 % bootstrap interval. A picture that was enlarged by repeating pixels has zeros alone; a smooth "
                 "one has small values: this is no sign of generation by itself.")
        yield Matrix(key="means", title="Mean |NPR| by group and place", values=np.stack(matrix).astype(np.float32),
                     rows=tuple(g.name for g in groups.groups), columns=PLACES, unit="of 255",
                     axes=(Axis("group"), Axis("place in the cell")))

    def _judged(self, groups: Groups, each: list[Found], seed: int) -> Iterator[AnyPanel]:
        few = min(len(one.inputs) for one in each)
        first, second = (g.name for g in groups.groups)
        if few < FEWEST:
            yield Text(key="detector", title="Detector", text=f"No network was trained: it takes {FEWEST} pictures of "
                       f"each group; there are {len(each[0].inputs)} of {first} and {len(each[1].inputs)} of {second}.")
            return
        judged = halves([evened(one.inputs, few, seed) for one in each], seed)
        yield Table(key="detector", title=f"A small network trained to tell {second} from {first}", rows=(judged.row,),
                    columns=(Column("accuracy"), Column("low"), Column("high"), Column("average precision"),
                             Column("accuracy, names shuffled")),
                    note=f"{few} pictures of each group, each judged by a network that was trained on the other half; "
                         "copies of a picture stay in one half; 95 % interval by Wilson. Names shuffled: the same "
                         "where nothing can be learnt, about 0.5.")
        yield Text(key="trust", title="Why not to trust a detector", text=WARNING, tone="warning")


def halves(groups: list[Any], seed: int) -> Judged:
    """Each picture judged by a network trained on the half that it is not in; the same for shuffled names."""
    from sklearn.metrics import average_precision_score

    inputs = torch.stack([one[1] for group in groups for one in group])
    truth = torch.tensor([k for k, group in enumerate(groups) for _ in group])
    fold = torch.from_numpy(folds([one[0] for group in groups for one in group], seed, HALVES))
    shuffled = truth[torch.randperm(len(truth), generator=seeds.generator(seed, "npr", "shuffle"))]
    found = np.zeros((2, len(truth)))
    for k in range(HALVES):
        test = fold == k
        for row, names in enumerate((truth, shuffled)):
            net = _npr.trained(inputs[~test], names[~test], seed, f"npr {k} {row}")
            found[row, test.numpy()] = _npr.scores(net, inputs[test])
    hits = ((found > 0) == np.stack([truth.numpy(), shuffled.numpy()])).sum(1)
    return Judged(int(hits[0]), len(truth), float(average_precision_score(truth.numpy(), found[0])), int(hits[1]))


def _known(value: float) -> float | None:
    return value if value == value else None
