"""Network dissection: which units of a layer detect which concept, by how far their maps and its pixels overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from analyzers.concepts import _overlap, _thresholds, _unit_panels
from analyzers.concepts._scores import Embedded, labelled, soft_wpmi
from xai import seeds
from xai.analyzer import Passes, param
from xai.batch import Batch
from xai.concept_maps import NONE, Concept, ConceptMaps, named_maps
from xai.errors import error
from xai.images import Images, load_images
from xai.layers import Capture
from xai.model import Model
from xai.panels import AnyPanel
from xai.result import Cost, Verdict
from xai.streaming import Block, State, Streaming
from xai.subject import Subject

Array = np.ndarray
BUFFERS = ("kept", "filled", "floor", "positions", "most")  # of thresholds
HELD = 1 << 28  # bytes that one table may take of memory where no budget is named; a larger one lies in a file


@dataclass(frozen=True)
class NetworkDissection(Streaming):
    """Network dissection: which units of a layer detect which colours, textures, shapes, parts, objects or scenes.

    T_k is the value that a share `quantile` of unit k's activations on the data exceed, exactly; M_k are the pixels
    where the map of k, upsampled bilinearly (align_corners=False, where the original centres receptive fields), lies
    strictly above T_k; L_c the pixels of concept c. Summed over all pictures, then divided:
    IoU(k, c) = |M_k and L_c| / (|M_k| + |L_c| - |M_k and L_c|), |M_k| only over pictures annotated for the category of
    c. A unit's label is its best concept, and it is a detector where that IoU is strictly above `least`. As the best of
    many concepts is biased upwards, two controls stand beside it: the masks against the concepts of other pictures
    (drawn within blocks of shuffled pictures), and the label of one half of the pictures on the other. A second score
    needs no masks: the AUC of a unit's pooled activation for the pictures that show c (INVERT). With embeddings that
    the user has, a third takes words from anywhere (CLIP-Dissect, soft-WPMI).

    Data: "concepts:500" and without --data scenes that are rendered here; a Broden or COCO-Stuff folder; of any other
    pictures the colours, and their labels, at the mask or the boxes where these are known, else true of all of it.

    Reads     one model, and pictures with concepts if given
    Yields    how many units detect how many concepts, by category and layer, beside chance; a table of all units;
              the pictures that excite a unit most, with its mask, of the best units, at most 64
    Raises    XaiError for activations that are not finite, for inputs of several sizes, for damaged embeddings
    Cost      two forwards a picture, however many units and layers. Kept are 8 * quantile bytes for each activation
              (values that may lie above a threshold), 4 for each unit and picture, a byte for each concept and picture,
              8 * (2 + permutations) for each unit and concept, and as bits `shown` masks a unit; a table over an eighth
              of --memory, or 256 MB, lies in a temporary file
    Reference Bau et al. 2017, arXiv:1704.05796; Bykov et al. 2023, arXiv:2311.13594 (INVERT); Oikarinen and Weng
              2023, arXiv:2204.10965 (CLIP-Dissect)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"forward", "hooks"})
    stages: ClassVar[int] = 2
    shares: ClassVar[bool] = True

    layer: str = param("auto", "layer whose units are labelled; auto: asked of the network")
    also: str = param("", "further layers, separated by commas, for which units are counted and listed as well")
    quantile: float = param(0.005, "share of a unit's activations above its threshold", low=0.0, high=0.5)
    least: float = param(0.04, "IoU above which a unit is a detector", low=0.0, high=1.0)
    resolution: int = param(112, "pixels of the longer side at which masks and concepts are compared, at most that of "
                                 "the input", low=8)
    permutations: int = param(20, "times that masks are compared with the concepts of other pictures", low=0)
    rare: int = param(5, "a concept that fewer pictures show (or lack) gets no AUC", low=1)
    pool: str = param("mean", "one number for a unit and picture, for AUC and words: mean or max over places",
                      choices=("mean", "max"))
    drawn: int = param(16, "units whose pictures are drawn, those of the highest IoU", low=0, high=64)
    shown: int = param(5, "pictures that are drawn for a unit, those of its highest activations", low=1, high=16)
    pictures: int = param(300, "scenes that are rendered where no pictures are given", low=2)
    embeddings: str = param("", "file (.safetensors) with `images` (n, d), in the order of the pictures, and `texts` "
                                "(m, d), for words by CLIP-Dissect")
    words: str = param("", "text file with the word of each row of `texts`, one a line")

    def passes(self, model: Model) -> Passes:
        """A second forward of every picture."""
        return Passes(forwards=1)

    def cost(self, subject: Subject) -> Cost:
        """Two forwards a picture, also of those that are rendered here."""
        count = self.pictures if subject.images is None else len(subject.images)
        return Cost(forwards=2 * count * len(subject.models))

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """The pictures in an order drawn from the seed, so that a block is a sample of all; then as any stream."""
        subject.one_model()
        images = load_images(f"concepts:{self.pictures}@{subject.seed}") if subject.images is None else subject.images
        yield from super().run(replace(subject, images=images.take(_order(subject.seed, images))))

    # --- sums ---
    def start(self, subject: Subject) -> State:
        """What is known before: names in the order read, their places in the data, the memory of a table, the seed."""
        images = subject.images
        assert images is not None
        budget = HELD if subject.memory_bytes is None else subject.memory_bytes // 8
        if self.embeddings:
            Embedded.of(self.embeddings, self.words, len(images))
        return {"names": np.array(images.names), "place": np.zeros(len(images), np.int64),
                "count": np.zeros(2, np.int64), "concepts": np.zeros((0, 2), str),
                "seed": np.array([subject.seed]), "budget": np.array([budget])}

    def update(self, state: State, block: Block, stage: int) -> None:
        """Stage 0: thresholds, pooled activations, which concepts there are. Stage 1: overlaps."""
        first = int(state["count"][stage])
        if stage == 0:
            self._look(state, block)
        else:
            self._compare(state, block)
        state["count"][stage] = first + len(block)

    def _look(self, state: State, block: Block) -> None:
        row = int(state["count"][0])
        state["place"][row : row + len(block)] = _places(block, state["names"])
        concepts = {tuple(one) for one in state["concepts"].tolist()}
        for batch in block.batches[0]:
            for image, truth in zip(batch.images, batch.truth, strict=True):
                concepts.update(image.concepts.concepts if image.concepts is not None else
                                named_maps(np.zeros((1, 1, 3), np.uint8), _text(truth), None).concepts)
            for number, maps in enumerate(_maps(batch, self._layers())):
                if f"{number}/kept" not in state:
                    self._prepare(state, number, maps)
                _check_size(state, batch, maps, number)
                tops = {key: state[f"{number}/{key}"] for key in BUFFERS}
                _thresholds.add(tops, np.ascontiguousarray(maps.transpose(1, 0, 2, 3)).reshape(maps.shape[1], -1))
                pooled = maps.mean((2, 3)) if self.pool == "mean" else maps.max((2, 3))
                state[f"{number}/pooled"][:, row : row + len(batch)] = pooled.T
                places = np.broadcast_to(row + np.arange(len(batch)), (maps.shape[1], len(batch)))
                _best(state, number, maps.max((2, 3)).T, places)
            row += len(batch)
        state["concepts"] = np.array(sorted(concepts))

    def _prepare(self, state: State, number: int, maps: Array) -> None:
        """Room for one layer's sums, now that its size is known."""
        budget, count = int(state["budget"][0]), len(state["names"])
        units, cells = maps.shape[1], maps.shape[2] * maps.shape[3]
        tops = _thresholds.start(units, _thresholds.above(self.quantile, count * cells), budget)
        state.update({f"{number}/{key}": value for key, value in tops.items()})
        state[f"{number}/pooled"] = _thresholds.held((units, count), np.float32, budget)
        state[f"{number}/top"] = np.full((units, self.shown), -np.inf, np.float32)
        state[f"{number}/best"] = np.full((units, self.shown), -1, np.int64)

    def _compare(self, state: State, block: Block) -> None:
        concepts: list[Concept] = [(str(a), str(b)) for a, b in state["concepts"].tolist()]
        numbers = {one: k for k, one in enumerate(concepts)}
        categories = sorted({category for category, _ in concepts})
        batches = block.batches[0]
        size = self._size(batches[0])
        if "pixels" not in state:
            state["of"] = np.array([categories.index(category) for category, _ in concepts])
            state["pixels"] = np.zeros((2, len(concepts)), np.int64)
            state["null pixels"] = np.zeros(len(concepts), np.int64)
            state["shown"] = _thresholds.held((len(state["names"]), len(concepts)), np.uint8, int(state["budget"][0]))
        views = [view for batch in batches for view in self._views(batch, size)]
        found = [_maps(batch, self._layers()) for batch in batches]
        for number, each in enumerate(zip(*found, strict=True)):
            maps = np.concatenate(each)
            tiles = _overlap.tiling((maps.shape[2], maps.shape[3]), size)
            packed = [_overlap.pack(one, planes, tiles, numbers, categories) for one, planes in views]
            self._tally(state, number, maps, packed, tiles, block.first)
        _note(state, packed, int(state["count"][1]))

    def _tally(self, state: State, number: int, maps: Array, packed: list[_overlap.Packed], tiles: _overlap.Tiling,
               first: int) -> None:
        """Add one layer's overlaps in a block."""
        units, concepts, kinds = maps.shape[1], len(state["concepts"]), len(packed[0].looked)
        if f"{number}/shared" not in state:
            tops = {key: state[f"{number}/{key}"] for key in BUFFERS}
            state[f"{number}/thresholds"] = _thresholds.found(tops, self.quantile)
            budget = int(state["budget"][0])
            for key, rows in (("shared", 2), ("null", self.permutations)):
                state[f"{number}/{key}"] = _thresholds.held((rows, units, concepts), np.int64, budget)
            state[f"{number}/area"] = np.zeros((2, units, kinds), np.int64)
            state[f"{number}/null area"] = np.zeros((self.permutations, units, kinds), np.int64)
            if number == 0:
                state["0/masks"] = np.zeros((*state["0/best"].shape, -(-tiles.size[0] * tiles.size[1] // 8)), np.uint8)
                state["size"] = np.array(tiles.size)
        found = _overlap.active(maps, state[f"{number}/thresholds"], tiles)
        areas, shelf = found.areas(len(maps), units), _overlap.Shelf.of(packed)
        start = int(state["count"][1])
        half = (start + np.arange(len(maps))) % 2
        looked = np.stack([one.looked for one in packed]).astype(np.int64)
        whole = np.zeros((len(maps), concepts), np.int64)
        for i, one in enumerate(packed):
            whole[i, one.whole] = 1
        state[f"{number}/shared"] += _overlap.overlaps(found, shelf, units, concepts, row=half, rows=2)
        for h in range(2):
            mine = areas * (half == h)[:, None]
            state[f"{number}/shared"][h] += mine.T @ whole
            state[f"{number}/area"][h] += mine.T @ looked
        for r, other in enumerate(self._others(state, len(maps), first)):
            state[f"{number}/null"][r] += (_overlap.overlaps(found, shelf, units, concepts, of=other)[0]
                                           + areas.T @ whole[other])
            state[f"{number}/null area"][r] += areas.T @ looked[other]
        if number == 0:
            _keep_masks(state, found, tiles, start, len(maps))

    def _others(self, state: State, count: int, first: int) -> Iterator[Array]:
        """For each permutation whose concepts each of a block's pictures is compared with, never its own."""
        if count < 2:
            return
        drawn = seeds.generator(int(state["seed"][0]), "network_dissection null", str(first))
        for _ in range(self.permutations):
            order = torch.randperm(count, generator=drawn).numpy()
            other = np.empty(count, np.int64)
            other[order] = np.roll(order, 1)
            yield other

    def merge(self, states: Sequence[State]) -> State:
        """The sums of parts of one stage, each begun with `count` at its first picture; those of stage 1 with the
        merged stage 0."""
        whole = dict(states[0])
        whole["count"] = np.max([one["count"] for one in states], axis=0)
        if "pixels" in whole:
            summed = [key for key in whole if key in ("pixels", "null pixels", "shown") or key.partition("/")[2] in
                      ("shared", "area", "null", "null area", "masks")]
        else:
            summed = [key for key in whole if key == "place" or key.endswith("/pooled")]
            whole["concepts"] = np.array(sorted({tuple(row) for one in states for row in one["concepts"].tolist()}))
            for number in range(len(self._layers())):
                parts = [{key: one[f"{number}/{key}"] for key in BUFFERS} for one in states]
                merged = _thresholds.merged(parts, int(whole["budget"][0]))
                whole.update({f"{number}/{key}": value for key, value in merged.items()})
                for one in states[1:]:
                    _best(whole, number, one[f"{number}/top"], one[f"{number}/best"])
        for key in summed:
            whole[key] = sum((one[key] for one in states[1:]), start=states[0][key])
        return whole

    # --- what is seen ---
    def _layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([self.layer, *(one.strip() for one in self.also.split(",") if one.strip())]))

    def _size(self, batch: Batch) -> tuple[int, int]:
        """(h, w) of masks and concepts."""
        height, width = (int(side) for side in batch.inputs.shape[-2:])
        scale = max(1.0, max(height, width) / self.resolution)
        return max(1, round(height / scale)), max(1, round(width / scale))

    def _views(self, batch: Batch, size: tuple[int, int]) -> Iterator[tuple[ConceptMaps, Array]]:
        """Each picture's concepts and its planes (p, *size) as the network sees them."""
        for i, image in enumerate(batch.images):
            seen = batch.seen[i]
            high, wide = seen.shape[:2]
            if image.concepts is not None:
                yield image.concepts, batch.frames[i].labels_to_input(image.concepts.planes, image.size, (high, wide),
                                                                      size, NONE)
                continue
            rows, columns = (((np.arange(n) + 0.5) * full / n).astype(int) for n, full in
                             zip(size, (high, wide), strict=True))
            region = batch.region(i)
            made = named_maps(seen[rows[:, None], columns], _text(batch.truth[i]),
                              None if region is None else region[rows[:, None], columns])
            yield made, made.planes

    # --- what the sums say ---
    def panels(self, subject: Subject, state: State) -> Iterator[AnyPanel | Verdict]:
        """The counts, the controls, the units."""
        assert subject.images is not None
        known = np.flatnonzero(state["pixels"].sum(0) > 0)  # concepts that no picture shows are no candidates
        concepts = tuple((str(a), str(b)) for a, b in state["concepts"][known].tolist())
        short = {key: value[..., known] if key in ("pixels", "null pixels", "of", "shown") or
                 key.partition("/")[2] in ("shared", "null") else value for key, value in state.items()}
        names = [subject.one_model().view(layer).name for layer in self._layers()]
        found = {name: labelled(short, number, concepts, self.rare) for number, name in enumerate(names)}
        yield from _unit_panels.overall(found, self.parameters(), state, short)
        words = self._worded(subject, state, names)
        yield from _unit_panels.strips(subject, state, next(iter(found.values())), self.drawn)
        for name, labels in found.items():
            yield _unit_panels.table(name, labels, self.least, words.get(name))

    def _worded(self, subject: Subject, state: State, names: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
        """The best word of every unit and its score, by layer; none without embeddings."""
        if not self.embeddings:
            return {}
        given = Embedded.of(self.embeddings, self.words, len(state["names"]))
        seen = int(state["count"][0])
        place = _order(subject.seed, state["names"])[state["place"][:seen]]
        likeness = given.pictures[place] @ given.texts.T
        found = {}
        for number, name in enumerate(names):
            scores = soft_wpmi(np.asarray(state[f"{number}/pooled"][:, :seen]), likeness)
            found[name] = [(given.words[w], float(scores[unit, w])) for unit, w in enumerate(scores.argmax(1))]
        return found


def _order(seed: int, images: Images | Array) -> Array:
    """In which order so many pictures are read."""
    drawn = torch.randperm(len(images), generator=seeds.generator(seed, "network_dissection order"))
    return np.asarray(drawn.numpy())


def _text(truth: int | str | None) -> str | None:
    return None if truth is None else str(truth) if isinstance(truth, str) else f"class {truth}"


def _places(block: Block, names: Array) -> list[int]:
    """Where a block's pictures stand among all that were to be read; some may have been left out."""
    ahead = iter(range(block.first, len(names)))
    return [next(i for i in ahead if names[i] == name) for name in block.names]


def _maps(batch: Batch, layers: Sequence[str]) -> list[Array]:
    """(n, units, h, w) float32 of each layer, by one forward of which nothing else is kept (a batch would keep its
    graph until its block is done). Raises XaiError where they are not finite."""
    model = batch.model
    views = [model.view(layer, batch.inputs[:1]) for layer in layers]
    module, found = model.runner(view.name for view in views), list[Array]()
    with torch.no_grad(), Capture(module, views, cut=False) as seen:
        model.run(batch.inputs, module)
    for view in views:
        if view not in seen.values:
            raise error("the layer", "one that runs in every forward", repr(view.name), "Name another with --layer")
        found.append(view.to_map(seen.values[view]).float().cpu().numpy())
        if not np.isfinite(found[-1]).all():
            raise error(f"the activations of {view.name}", "finite", "NaN or infinity",
                        "Check the weights, or take float32")
    return found


def _check_size(state: State, batch: Batch, maps: Array, number: int) -> None:
    """All inputs must be of one size, so that a unit's share of pixels means the same in each."""
    size = np.array([*batch.inputs.shape[-2:], *maps.shape[2:]])
    if not np.array_equal(state.setdefault(f"{number}/size", size), size):
        raise error("the inputs", "of one size", f"{tuple(size[:2])} after {tuple(state[f'{number}/size'][:2])}",
                    "Give pictures that are not normalised yet, or all of one size")


def _best(state: State, number: int, peaks: Array, places: Array) -> None:
    """Take activations (units, n) of pictures at `places` among each unit's largest; of equal ones the first stays."""
    top = np.concatenate([state[f"{number}/top"], peaks], axis=1)
    best = np.concatenate([state[f"{number}/best"], places], axis=1)
    order = np.argsort(-top, axis=1, kind="stable")[:, : state[f"{number}/top"].shape[1]]
    state[f"{number}/top"] = np.take_along_axis(top, order, 1)
    state[f"{number}/best"] = np.take_along_axis(best, order, 1)


def _note(state: State, packed: list[_overlap.Packed], row: int) -> None:
    """How many pixels of each concept the pictures have, and which show it."""
    for i, one in enumerate(packed):
        state["pixels"][(row + i) % 2] += one.area
        state["shown"][row + i] = one.area > 0
        if len(packed) > 1:
            state["null pixels"] += one.area


def _keep_masks(state: State, found: _overlap.Active, tiles: _overlap.Tiling, start: int, count: int) -> None:
    """The masks of those pictures that are among a unit's best."""
    here = (state["0/best"] >= start) & (state["0/best"] < start + count)
    for unit, slot in zip(*np.nonzero(here), strict=True):
        mine = (found.unit == unit) & (found.picture == state["0/best"][unit, slot] - start)
        mask = _overlap.unpacked(found.bits[:, mine], found.tile[mine], tiles)
        state["0/masks"][unit, slot] = np.packbits(mask)


