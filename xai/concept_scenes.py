"""Rendered scenes of which every colour, texture, shape, object and part is known to the pixel: `concepts:COUNT@SEED`.

A scene is a ground of bands (a beach, a night, ...), patches of texture, shapes, and objects made of parts. What is
drawn later covers what lies below it in all maps alike, and no pixel is mixed of two things, so the masks are exact;
the colour of a pixel is that of the paint it was drawn with. Only then comes noise. A scene follows from its seed and
number alone, and is the same to the bit on one machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from xai.concept_maps import COLOURS, NONE, Concept, ConceptMaps
from xai.errors import error
from xai.image_entries import Entry, Listing, Raw

SIDE = 112  # pixels
TEXTURES = ("horizontal stripes", "vertical stripes", "diagonal stripes", "checks", "dots", "grid", "bricks", "speckle")
SHAPES = ("disc", "square", "triangle", "ring", "cross", "star", "bar")
PARTS = {"house": ("roof", "wall", "door", "window"), "face": ("eye", "mouth", "hair"), "car": ("wheel", "bodywork"),
         "tree": ("crown", "trunk"), "boat": ("sail", "hull")}
# Bands from the top: the colours that each may have.
SCENES: dict[str, tuple[tuple[str, ...], ...]] = {
    "beach": (("blue", "white"), ("blue", "green"), ("yellow", "orange")), "field": (("blue", "grey"), ("green",)),
    "night": (("black", "purple"), ("black", "grey")), "room": (("white", "pink", "yellow"), ("brown", "orange")),
    "snow": (("grey", "blue"), ("white",)), "desert": (("orange", "blue", "red"), ("yellow", "brown")),
}  # fmt: skip
CONCEPTS: tuple[Concept, ...] = (
    *(("color", name) for name in COLOURS), *(("texture", name) for name in TEXTURES),
    *(("shape", name) for name in SHAPES), *(("object", name) for name in PARTS),
    *(("part", part) for parts in PARTS.values() for part in parts), *(("scene", name) for name in SCENES),
)  # fmt: skip
COLOURS_IN_ORDER = tuple(COLOURS)  # the first concepts: a colour's number is its place
PLANES = ("color", "texture", "shape", "object", "part")
CATEGORIES = (*PLANES, "scene")
NUMBER = {concept: number for number, concept in enumerate(CONCEPTS)}
Mask = npt.NDArray[np.bool_]
Y, X = np.arange(SIDE)[:, None] + 0.5, np.arange(SIDE)[None] + 0.5


@dataclass
class Canvas:
    """A scene that is being drawn."""

    rng: np.random.Generator
    rgb: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((SIDE, SIDE, 3)))
    planes: npt.NDArray[np.int32] = field(default_factory=lambda: np.full((len(PLANES), SIDE, SIDE), NONE, np.int32))

    def paint(self, mask: Mask, colour: str, **concepts: str) -> None:
        """Fill the mask with one colour, slightly varied, and with these concepts, a category each; what was there
        before is gone from all maps."""
        shade = np.array(COLOURS[colour]) / 255 + self.rng.uniform(-0.06, 0.06, 3)
        where = np.flatnonzero(np.broadcast_to(mask, (SIDE, SIDE)))
        self.rgb.reshape(-1, 3)[where] = shade.clip(0, 1)
        numbers = [NONE] * len(PLANES)
        for category, name in {"color": colour, **concepts}.items():
            numbers[PLANES.index(category)] = NUMBER[category, name]
        for plane, number in zip(self.planes.reshape(len(PLANES), -1), numbers, strict=True):
            plane[where] = number

    def two(self) -> tuple[str, str]:
        """Two different colours."""
        one, two = self.rng.choice(list(COLOURS), 2, replace=False)
        return str(one), str(two)

    def spot(self, low: float, high: float) -> tuple[float, float, float]:
        """x, y and half the size of something that lies within the picture."""
        reach = self.rng.uniform(low, high)
        x, y = self.rng.uniform(reach, SIDE - reach, 2)
        return float(x), float(y), float(reach)


def ground(canvas: Canvas, scene: str) -> None:
    """The scene's bands."""
    bands, top = SCENES[scene], 0
    for i, choices in enumerate(bands):
        left = len(bands) - 1 - i
        bottom = SIDE if not left else top + int(canvas.rng.uniform(0.6, 1.3) * (SIDE - top) / (left + 1))
        canvas.paint((top <= Y) & (bottom > Y), str(canvas.rng.choice(choices)))
        top = bottom


def woven(name: str, rng: np.random.Generator) -> Mask:
    """Where a texture has its second colour: (SIDE, SIDE), or what broadcasts to it."""
    period = rng.uniform(6, 10)
    x, y = X + rng.uniform(0, 9), Y + rng.uniform(0, 9)
    draw: dict[str, Callable[[], Mask]] = {
        "horizontal stripes": lambda: y % period < period / 2, "vertical stripes": lambda: x % period < period / 2,
        "diagonal stripes": lambda: (x + y) % (1.4 * period) < 0.7 * period,
        "checks": lambda: (y % period < period / 2) ^ (x % period < period / 2),
        "dots": lambda: (x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < (0.32 * period) ** 2,
        "grid": lambda: (x % period < 1.5) | (y % period < 1.5),
        "bricks": lambda: (y % (period / 2) < 1) | ((x + period * (2 * y // period % 2)) % (2 * period) < 1),
        "speckle": lambda: rng.random((SIDE, SIDE)) < 0.4,
    }
    return draw[name]()


def patch(canvas: Canvas, name: str) -> None:
    """A rectangle of texture."""
    x, y, reach = canvas.spot(14, 26)
    inside = (abs(X - x) < reach) & (abs(Y - y) < canvas.rng.uniform(0.6, 1) * reach)
    one, two = canvas.two()
    second = woven(name, canvas.rng)
    canvas.paint(inside & ~second, one, texture=name)
    canvas.paint(inside & second, two, texture=name)


def formed(name: str, x: float, y: float, r: float) -> Mask:
    """(SIDE, SIDE): a shape around (x, y) of half its size r."""
    u, v = (X - x) / r, (Y - y) / r
    far = u * u + v * v
    draw: dict[str, Callable[[], Mask]] = {
        "disc": lambda: far < 1, "square": lambda: (abs(u) < 0.85) & (abs(v) < 0.85),
        "triangle": lambda: (v < 0.8) & (v > 2 * abs(u) - 1), "ring": lambda: (far < 1) & (far > 0.36),
        "cross": lambda: ((abs(u) < 1) & (abs(v) < 0.3)) | ((abs(u) < 0.3) & (abs(v) < 1)),
        "star": lambda: far < (0.45 + 0.5 * np.cos(2.5 * np.arctan2(u, -v)) ** 4) ** 2,
        "bar": lambda: (abs(u) < 1) & (abs(v) < 0.22),
    }
    return draw[name]()


def shape(canvas: Canvas, name: str) -> None:
    """One shape, in a colour that what lies below its middle has not."""
    x, y, reach = canvas.spot(7, 14)
    below = COLOURS_IN_ORDER[canvas.planes[0, int(y), int(x)]]
    canvas.paint(formed(name, x, y, reach), str(canvas.rng.choice([c for c in COLOURS if c != below])), shape=name)


def thing(canvas: Canvas, name: str) -> None:
    """An object with its parts; its colours are drawn, but for those that make it what it is."""
    x, y, r = canvas.spot(14, 22)
    u, v = (X - x) / r, (Y - y) / r
    one, two = canvas.two()

    def part(mask: Mask, colour: str, called: str) -> None:
        canvas.paint(np.asarray(mask), colour, object=name, part=called)

    if name == "house":
        part((abs(u) < 0.75) & (v > -0.2) & (v < 1), one, "wall")
        part((v < -0.2) & (v > -1) & (abs(u) < (v + 1) * 1.2), "red" if one != "red" else "brown", "roof")
        part((abs(u + 0.3) < 0.17) & (v > 0.35) & (v < 1), two, "door")
        part((abs(u - 0.3) < 0.2) & (abs(v - 0.3) < 0.2), "yellow" if one != "yellow" else "black", "window")
    elif name == "face":
        canvas.paint(np.hypot(u, v) < 0.95, str(canvas.rng.choice(["pink", "brown", "orange"])), object=name)
        part((np.hypot(u, v) < 0.98) & (v < -0.5), str(canvas.rng.choice(["black", "yellow", "grey"])), "hair")
        part((np.hypot(u - 0.35, v + 0.15) < 0.16) | (np.hypot(u + 0.35, v + 0.15) < 0.16), "white", "eye")
        part((abs(u) < 0.4) & (abs(v - 0.5) < 0.1), "red", "mouth")
    elif name == "car":
        part(((abs(u) < 1) & (abs(v - 0.15) < 0.25)) | ((abs(u) < 0.5) & (abs(v + 0.2) < 0.3)), one, "bodywork")
        part((np.hypot(u - 0.55, v - 0.4) < 0.24) | (np.hypot(u + 0.55, v - 0.4) < 0.24),
             "black" if one != "black" else "grey", "wheel")
    elif name == "tree":
        part((abs(u) < 0.16) & (v > 0) & (v < 1), "brown", "trunk")
        part(np.hypot(u, v + 0.35) < 0.65, "green" if canvas.rng.random() < 0.8 else "orange", "crown")
    else:
        part((v > 0.35) & (v < 0.9) & (abs(u) < 1.2 - 0.5 * v), one, "hull")
        part((v < 0.3) & (v > -1) & (u > -0.1) & (u < (v + 1) * 0.7), "white" if one != "white" else "red", "sail")


def render(index: int, seed: int = 0) -> tuple[npt.NDArray[np.uint8], ConceptMaps]:
    """Scene `index` of a seed: pixels (3, 112, 112) uint8, and its concepts, 50 in 6 categories."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index, 2))))
    canvas = Canvas(rng)
    scene = str(rng.choice(list(SCENES)))
    ground(canvas, scene)
    for name in rng.choice(TEXTURES, int(rng.integers(1, 4)), replace=False):
        patch(canvas, str(name))
    for name in rng.choice(list(PARTS), int(rng.integers(1, 4)), replace=False):
        thing(canvas, str(name))
    for name in rng.choice(SHAPES, int(rng.integers(1, 5)), replace=False):
        shape(canvas, str(name))
    noisy = canvas.rgb + rng.uniform(0.01, 0.04) * rng.standard_normal((SIDE, SIDE, 3))
    pixels = np.rint(255 * noisy.clip(0, 1)).astype(np.uint8)
    return (np.ascontiguousarray(pixels.transpose(2, 0, 1)),
            ConceptMaps(CONCEPTS, canvas.planes, (NUMBER["scene", scene],), CATEGORIES))


def _read(index: int, seed: int) -> Raw:
    pixels, concepts = render(index, seed)
    return Raw(pixels, concepts=concepts)


def list_concepts(text: str) -> Listing:
    """The scenes that "500" or "500@7" (of seed 7) asks for. Raises XaiError where the text is neither."""
    count, at, seed = text.partition("@")
    numbers = (count, seed) if at else (count,)
    if not all(n.isascii() and n.isdigit() and len(n) <= 9 for n in numbers) or int(count) < 1:
        raise error(f"concepts:{text}", "concepts:COUNT or concepts:COUNT@SEED", repr(text) if text else "no count",
                    "Ask for concepts:500, say")
    start = int(seed) if at else 0
    return Listing(tuple(Entry(f"concepts-{start}-{i:05d}", partial(_read, i, start)) for i in range(int(count))))
