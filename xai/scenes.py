"""Planted evidence: rendered scenes of 64 x 64 pixels in which one glyph, in one of sixteen cells, decides the class.

The other cells are bare or hold shapes that belong to no class; in the variant "null" one more holds a patch that
catches the eye and says nothing. A scene follows from its seed and number alone, so each can be made without the
others, in any order. It can be rendered again without one of its objects, or with another class's glyph, with all else
the same to the bit: what a network's answer changes by is then the true effect of that evidence, and no picture leaves
the distribution that the network learned (FunnyBirds, ICCV 2023, does so with the parts of birds).

A scene is the same to the bit on one machine; on another kind a pixel may round to the next of 256 steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from xai.errors import did_you_mean, error
from xai.glyphs import CELL, CLASSES, NO_CLASS, NULL, SIDE, Values, coverage, null_patch, texture
from xai.image_entries import Entry, Listing, Raw

CELLS = (SIDE // CELL) ** 2
VARIANTS = ("plain", "null")
TILT = math.radians(12)  # a shape's most rotation either way
_LAYOUT, _GROUND, _GRAIN, _LABELS, _PLACES, _OBJECTS = range(6)  # streams of random numbers of one scene


def _stream(seed: int, number: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(number, stream))))


def _dealt(seed: int, index: int, stream: int, kinds: int) -> int:
    """One of `kinds`: each comes once in every run of `kinds` scenes, in an order that the seed draws for that run."""
    return int(_stream(seed, index // kinds, stream).permutation(kinds)[index % kinds])


@dataclass(frozen=True)
class Thing:
    """What one cell holds.

    role "glyph", "distractor" or "null"; kind its shape; cell 0 to 15, row by row; x, y its centre in pixels from the
    cell's corner; reach half its extent and stroke its lines' width, pixels; angle in radians; colour red, green,
    blue and opacity in [0, 1]; stream the random numbers of a null patch.
    """

    role: str
    kind: str
    cell: int
    x: float = CELL / 2
    y: float = CELL / 2
    reach: float = CELL / 2 - 1
    stroke: float = 0.0
    angle: float = 0.0
    colour: tuple[float, float, float] = (0.0, 0.0, 0.0)
    opacity: float = 1.0
    stream: int = 0

    @property
    def corner(self) -> tuple[int, int]:
        """(row, column) of the cell's first pixel."""
        row, column = divmod(self.cell, SIDE // CELL)
        return row * CELL, column * CELL

    def coverage(self) -> Values:
        """(16, 16) in [0, 1]: each pixel's share of it, within its cell."""
        if self.role == "null":
            return np.pad(np.ones((CELL - 2, CELL - 2)), 1)
        return coverage(self.kind, self.x, self.y, self.reach, self.stroke, self.angle)

    def mask(self) -> npt.NDArray[np.bool_]:
        """(64, 64): the pixels that it touches, however little."""
        full, (row, column) = np.zeros((SIDE, SIDE), dtype=bool), self.corner
        full[row : row + CELL, column : column + CELL] = self.coverage() > 0
        return full


@dataclass(frozen=True)
class Scene:
    """One scene: what it holds and how to draw it. Make it with `scene` or `scenes`.

    seed, index, variant: what it follows from. label: the class's number, None where the glyph is taken out. glyph:
    what decides the class, shown or not. others: distractors, then the null patch where there is one. ground: the two
    colours that the texture runs between. grain: standard deviation of the noise over all, of 1.
    """

    label_names: ClassVar[tuple[str, ...]] = CLASSES
    seed: int
    index: int
    variant: str
    label: int | None
    glyph: Thing
    others: tuple[Thing, ...]
    ground: tuple[tuple[float, float, float], tuple[float, float, float]]
    grain: float

    @property
    def name(self) -> str:
        """A name that says what the scene follows from."""
        return _name(self.index, self.seed, self.variant)

    @property
    def cell(self) -> int:
        """The glyph's cell, 0 to 15, row by row."""
        return self.glyph.cell

    @property
    def objects(self) -> tuple[Thing, ...]:
        """All that is drawn over the texture: the glyph first, where it is shown."""
        return self.others if self.label is None else (self.glyph, *self.others)

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(64, 64): the pixels that the glyph touches; none where it is taken out."""
        return np.zeros((SIDE, SIDE), dtype=bool) if self.label is None else self.glyph.mask()

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """x0, y0, x1, y1 around the mask, x1 and y1 exclusive; None where the glyph is taken out."""
        return None if self.label is None else around(self.mask)

    def render(self) -> npt.NDArray[np.uint8]:
        """(64, 64, 3) uint8."""
        low, high = np.array(self.ground)
        picture = low + (high - low) * texture(_stream(self.seed, self.index, _GROUND))[:, :, None]
        for thing in self.objects:  # each stays within its cell, so their order does not matter
            row, column = thing.corner
            part = picture[row : row + CELL, column : column + CELL]
            part += thing.opacity * thing.coverage()[:, :, None] * (self._paint(thing) - part)
        picture += self.grain * _stream(self.seed, self.index, _GRAIN).standard_normal((SIDE, SIDE, 3))
        whole: npt.NDArray[np.uint8] = np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)
        return whole

    def _paint(self, thing: Thing) -> Values:
        if thing.role != "null":
            return np.array(thing.colour)
        return np.pad(null_patch(thing.kind, _stream(self.seed, self.index, thing.stream)), ((1, 1), (1, 1), (0, 0)))

    def without_evidence(self) -> Scene:
        """The same scene without its glyph."""
        return replace(self, label=None)

    def with_glyph(self, label: int | str) -> Scene:
        """The same scene with the glyph of this class, by number or name, in the place and colour of its own.

        Raises XaiError where there is no such class.
        """
        if isinstance(label, str):
            if label not in CLASSES:
                raise error("the class", f"one of {', '.join(CLASSES)}", repr(label),
                            did_you_mean(label, CLASSES) or "Choose one of these")
            label = CLASSES.index(label)
        if not 0 <= label < len(CLASSES):
            raise error("the class", f"a number from 0 to {len(CLASSES) - 1}", label, "Choose one of these")
        return replace(self, label=label, glyph=replace(self.glyph, kind=CLASSES[label]))

    def without(self, k: int) -> Scene:
        """The same scene without object k of `objects`. Raises XaiError where there is none."""
        if not 0 <= k < len(self.objects):
            raise error("the object", f"a number from 0 to {len(self.objects) - 1}", k, "Count them in `objects`")
        if self.label is not None and k == 0:
            return self.without_evidence()
        gone = self.objects[k]
        return replace(self, others=tuple(thing for thing in self.others if thing is not gone))


def around(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The least box x0, y0, x1, y1 around a mask (h, w) that is not empty, x1 and y1 exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _colour(generator: np.random.Generator, ground: Values) -> tuple[float, float, float]:
    """The first of twelve colours that stands off from the ground's two and their mean, or the one that does most."""
    drawn, three = generator.random((12, 3)), np.vstack([ground, ground.mean(0)])
    apart = np.sqrt(((drawn[:, None] - three) ** 2).sum(2)).min(1)
    far = np.flatnonzero(apart >= 0.45)
    red, green, blue = drawn[far[0] if len(far) else int(apart.argmax())].tolist()
    return red, green, blue


def _thing(generator: np.random.Generator, role: str, kind: str, cell: int, ground: Values) -> Thing:
    """A shape of drawn size, tilt, stroke, colour and opacity, at any place where all of it lies within its cell."""
    reach, angle = generator.uniform(4.6, 6.1), generator.uniform(-TILT, TILT)
    slack = CELL / 2 - 0.5 - reach * (math.cos(angle) + math.sin(abs(angle)))
    x, y = CELL / 2 + generator.uniform(-slack, slack, 2)
    stroke, opacity = generator.uniform(1.8, 2.6), generator.uniform(0.75, 1)
    return Thing(role, kind, cell, float(x), float(y), reach, stroke, angle, _colour(generator, ground), opacity)


def scene(index: int, seed: int = 0, variant: str = "plain") -> Scene:
    """Scene number `index`, from 0, of a seed, from 0; variant "null" is the same scene with a null patch added.

    In every ten scenes from a multiple of ten each class comes once, in every sixteen each cell, independently. Raises
    XaiError where index or seed are negative or the variant is unknown.
    """
    if variant not in VARIANTS:
        raise error("the variant", " or ".join(VARIANTS), repr(variant), "Choose one of these")
    for what, number in (("the seed", seed), ("the scene's number", index)):
        if number < 0:
            raise error(what, "0 or more", number, "Give another")
    label, cell = _dealt(seed, index, _LABELS, len(CLASSES)), _dealt(seed, index, _PLACES, CELLS)
    layout = _stream(seed, index, _LAYOUT)
    low = layout.uniform(0.15, 0.85, 3)
    ground = np.stack([low, np.clip(low + layout.uniform(-0.22, 0.22, 3), 0, 1)])
    grain = layout.uniform(0.01, 0.04)
    free = layout.permutation([c for c in range(CELLS) if c != cell])
    kinds = [NO_CLASS[k] for k in layout.integers(len(NO_CLASS), size=int(layout.integers(4, 9)))]
    glyph = _thing(_stream(seed, index, _OBJECTS), "glyph", CLASSES[label], cell, ground)
    others = [_thing(_stream(seed, index, _OBJECTS + 1 + k), "distractor", kind, int(free[k]), ground)
              for k, kind in enumerate(kinds)]
    if variant == "null":
        kind = NULL[int(layout.integers(len(NULL)))]
        others.append(Thing("null", kind, int(free[-1]), stream=_OBJECTS + CELLS + 1))
    first, second = (tuple(colour) for colour in ground.tolist())
    return Scene(seed, index, variant, label, glyph, tuple(others), (first, second), grain)


def scenes(count: int, seed: int = 0, variant: str = "plain") -> Iterator[Scene]:
    """The first `count` scenes of a seed, one after the other; see `scene`."""
    return (scene(index, seed, variant) for index in range(count))


def _name(index: int, seed: int, variant: str) -> str:
    return f"planted-{'null-' if variant == 'null' else ''}{seed}-{index:05d}"


def list_scenes(count: int, seed: int = 0, variant: str = "plain") -> Listing:
    """The first `count` scenes of a seed as entries: picture, label, box and mask, rendered whenever one is read."""
    if count < 1:
        raise error("the number of scenes", "1 or more", count, "Ask for more")
    scene(0, seed, variant)  # says at once what is wrong with seed or variant
    entries = (Entry(_name(i, seed, variant), partial(_read, i, seed, variant), _dealt(seed, i, _LABELS, len(CLASSES)))
               for i in range(count))
    return Listing(tuple(entries), CLASSES)


def _read(index: int, seed: int, variant: str) -> Raw:
    made = scene(index, seed, variant)
    pixels = np.ascontiguousarray(made.render().transpose(2, 0, 1))
    return Raw(pixels, made.label, np.array([made.box], dtype=np.float32), made.mask)


def asked(text: str) -> tuple[int, int, str]:
    """(count, seed, variant) of "500", "500@7", "null:500@7"; raises XaiError where the text is none of these."""
    variant, colon, rest = text.rpartition(":")
    count, at, seed = rest.partition("@")
    numbers = (count, seed) if at else (count,)
    plain = all(number.isascii() and number.isdigit() and len(number) <= 9 for number in numbers)
    if not plain or int(count) < 1 or (colon and variant not in VARIANTS):
        raise error(f"planted:{text}", "planted:COUNT, planted:COUNT@SEED or planted:null:COUNT@SEED",
                    repr(text) if text else "no count", "Ask for planted:500, say")
    return int(count), int(seed) if at else 0, variant or VARIANTS[0]
