"""The analyzer `cka`; what is drawn of it stands in `_alike.py`, how layers are read in `_layers.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from analyzers.representation import _alike
from analyzers.representation._layers import PIXELS, Reading, check_patterns, read
from xai import seeds, similarity
from xai.analyzer import param
from xai.errors import error
from xai.panels import AnyPanel
from xai.result import Verdict
from xai.similarity import Measure, ucentred
from xai.streaming import Block, State, Streaming
from xai.subject import Subject

GROUPS = 64  # sums are kept for as many groups of blocks, which the bootstrap draws from: memory does not grow
LEAST = 8  # pictures of a block: fewer leave a U-centred matrix next to no free numbers


@dataclass(frozen=True)
class CKA(Streaming):
    """CKA: how alike what the layers of one or two networks make of the same pictures.

    CKA(X, Y) = sum_b HSIC(X_b, Y_b) / sqrt(sum_b HSIC(X_b, X_b) sum_b HSIC(Y_b, Y_b)), b blocks of pictures, HSIC the
    unbiased estimate from the U-centred Gram matrices of the features (all values of an activation, flattened; the mean
    over the block taken away in float32 or better). A block counts by its pairs of pictures, so a shorter one counts
    for less. Procrustes, RSA and mutual kNN are sums over blocks in the same way. The first row is the network's own
    input.

    Reads     one model (each layer against each) or two (the first one's against the second one's), images
    Yields    a heat map of all pairs, its 95 % bounds (bootstrap over blocks, from 16 on), runs of layers that are
              alike, the monotone path that aligns the layers of two models, and what shuffled pictures would give
    Raises    XaiError if there are not one or two models, fewer than 8 pictures, no such layer, or no memory for a
              block in one forward
    Cost      one forward a picture and model, and n p multiply-adds a picture and layer of p features (n pictures in a
              block): about half as much again for convolutions at 64 pixels. Procrustes: a decomposition of n x n for
              each pair of layers, block and shuffle, by far the dearest. Memory: the activations of one block as they
              pass, and 64 sums a pair of layers
    Reference Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", arXiv:1905.00414; over
              blocks: Nguyen, Raghu, Kornblith 2021, arXiv:2010.15327, eq. 3; unbiased HSIC: Song et al. 2012, JMLR 13;
              mutual kNN: Huh et al. 2024, arXiv:2405.07987; interval: Hesterberg 2015, arXiv:1411.5279
    """

    # One model or two: with `two_models` a single one could not be compared with itself.
    needs: ClassVar[frozenset[str]] = frozenset({"hooks", "images"})
    fewest: ClassVar[int] = LEAST

    layers: str = param("auto", "auto: every convolution and linear layer; conv; or names and patterns, separated by "
                                "commas, such as layer?.0.conv1,fc")
    measures: str = param("linear", "one or several, separated by commas: linear and rbf (CKA), procrustes, rsa, knn")
    minibatch: int = param(64, "pictures of a block, which are compared with each other; a data set is cut into equal "
                               "blocks of at most so many", low=LEAST)
    neighbours: int = param(10, "k of mutual k-nearest neighbours", low=1)
    width: float = param(1.0, "of the Gaussian kernel, in roots of the median squared distance", low=0.01)
    shuffles: int = param(20, "times that each block's pictures are paired wrongly, to see what chance gives", low=1)
    together: float = param(0.8, "layers of a run of alike ones have at least this similarity, every two of them",
                            low=0, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = similarity.measures()
        for name in self._names():
            if name not in known:
                raise error(f"{self.name()}.measures", f"one or several of {', '.join(known)}", repr(name),
                            "Separate several by commas")
        if not self._names():
            raise error(f"{self.name()}.measures", f"one or several of {', '.join(known)}", "none", "Name one")
        if "knn" in self._names() and self.neighbours > self.minibatch - 2:
            raise error(f"{self.name()}.neighbours", f"at most {self.minibatch - 2}, as a block has {self.minibatch} "
                        "pictures", self.neighbours, "Lower it, or raise minibatch")

    def block_size(self, subject: Subject) -> int:
        """Equal blocks of at most `minibatch` pictures."""
        count = max(1, len(subject.images or ()))
        return -(-count // -(-count // self.minibatch))

    def start(self, subject: Subject) -> State:
        """Nothing yet: which layers run is seen in the first block."""
        if not 1 <= len(subject.models) <= 2:
            raise error("the number of models", "one or two for this method", len(subject.models),
                        "Name them with --model")
        check_patterns(subject.models, self.layers, f"{self.name()}.layers")
        return {"seed": np.array([subject.seed]), "size": np.array([self.block_size(subject)]),
                "skipped": np.zeros(1, np.int64)}

    def update(self, state: State, block: Block, stage: int) -> None:
        """Add the products of all pairs of layers within the block."""
        n = len(block)
        if n < max(LEAST, self.neighbours + 2 if "knn" in self._names() else 0):
            state["skipped"] += n
            return
        models = [batches[0].model for batches in block.batches]
        readings = [read(model, batches, self.layers, f"{self.name()}.layers")
                    for model, batches in zip(models, block.batches, strict=True)]
        self._open(state, readings)
        group = block.first // int(state["size"][0]) % GROUPS
        state["pictures"][group] += n
        state["blocks"][group] += 1
        grams = torch.stack([one.gram for each in readings for one in each.values()])
        away = np.array([one.away for each in readings for one in each.values()])
        form = ucentred(grams)
        state["spread"] += form.square().sum((1, 2)).numpy()
        state["scale"] += n * (n - 3) * np.square(away)
        grams = grams.nan_to_num(0, 0, 0)  # decompositions do not take what is no number; `spread` remembers it
        for name, measure in self._measures().items():
            form = measure.form(grams)
            state[name][group] += measure.product(form, form).numpy()
            self._shuffle(state, name, measure, form, block.first)

    def _open(self, state: State, readings: Sequence[dict[str, Reading]]) -> None:
        """Room for the sums at the first block; later ones must bring the same layers."""
        layers = np.array([name for each in readings for name in each])
        if "layers" in state:
            if list(state["layers"]) != list(layers):
                raise error("the layers", "the same in every forward", "others for other pictures",
                            f"Name some that always run with --set {self.name()}.layers=...")
            return
        ones = [one for each in readings for one in each.values()]
        count, first = len(layers), len(readings[0])
        state["layers"] = layers
        state["shapes"] = np.array(["x".join(map(str, one.shape)) or "1" for one in ones])
        state["features"] = np.array([int(np.prod(one.shape)) for one in ones])
        state["models"] = np.array([m for m, each in enumerate(readings) for _ in each])
        state["pictures"], state["blocks"] = np.zeros(GROUPS, np.int64), np.zeros(GROUPS, np.int64)
        state["spread"], state["scale"] = np.zeros(count), np.zeros(count)
        other = count - first if len(readings) > 1 else count
        for name in self._names():
            state[name] = np.zeros((GROUPS, count, count))
            state[f"{name} shuffled"] = np.zeros((self.shuffles, first, other))

    def _shuffle(self, state: State, name: str, measure: Measure, form: Tensor, first: int) -> None:
        """Add the products after the first one's pictures have changed places."""
        sums, n = state[f"{name} shuffled"], form.shape[-1]
        rows, columns = sums.shape[1:]
        random = seeds.generator(int(state["seed"][0]), "cka shuffle", str(first))
        one, two = form[:rows].flatten(1), form[len(form) - columns :]
        for draw in sums:
            order = torch.randperm(n, generator=random)
            moved = one.index_select(1, (n * order[:, None] + order).flatten())
            draw += measure.product(moved.view(rows, n, n), two).numpy()

    def merge(self, states: Sequence[State]) -> State:
        """All sums of all parts; parts of other layers, seeds or block sizes raise XaiError."""
        parts = [state for state in states if "layers" in state]
        if not parts:
            return {key: value.copy() for key, value in states[0].items()}
        merged = {key: value.copy() for key, value in parts[0].items()}
        for key in ("layers", "seed", "size"):
            if any(not np.array_equal(part[key], merged[key]) for part in parts):
                raise error("the parts to be merged", f"of one run, with the same {key}", "others",
                            "Sum all parts with the same models, seed and pictures")
        same = {"layers", "shapes", "features", "models", "seed", "size"}
        for key in merged.keys() - same:
            for part in parts[1:]:
                merged[key] += part[key]
        merged["skipped"] = np.sum([state["skipped"] for state in states], axis=0)
        return merged

    def panels(self, subject: Subject, state: State) -> Iterator[AnyPanel | Verdict]:
        """Heat maps, bounds, runs, path; then what they rest on."""
        if "layers" not in state:
            raise error("a block of pictures", f"of at least {LEAST} that every model can use", "fewer in each",
                        "Give more pictures, or leave out those that do not fit")
        known = self._measures()
        yield from _alike.panels(state, [model.spec for model in subject.models], known, self.together, PIXELS,
                                 self.neighbours)

    def _names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.strip() for one in self.measures.split(",") if one.strip()))

    def _measures(self) -> dict[str, Measure]:
        known = similarity.measures(self.neighbours, self.width)
        return {name: known[name] for name in self._names()}
