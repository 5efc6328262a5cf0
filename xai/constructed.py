"""Networks whose weights were set by hand, so that it is known which pixels speak for the score; how maps are judged.

The pictures are 24 x 24, the first layer means one colour over cells of 4 x 4, 0 is black to the network as well, and
class 0 is explained. A: top left, B: bottom right, C: bottom left, blocks of 8 x 8. a, b, c: the mean green of a block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xai import catalog
from xai.attribution import Attribution, attribute, sheets_of
from xai.health import enlarged
from xai.images import Image, Images
from xai.model import Model
from xai.panels import Heatmap, View
from xai.result import Verdict
from xai.subject import Subject
from xai.targets import Target

SIDE, CELL = 24, 4  # pixels of a picture's and of a cell's side
CELLS = SIDE // CELL
RED, GREEN, BLUE = 0, 1, 2
Region = tuple[slice, slice]  # rows and columns in pixels
A: Region = (slice(0, 8), slice(0, 8))
B: Region = (slice(16, 24), slice(16, 24))
C: Region = (slice(16, 24), slice(0, 8))
MIDDLE: Region = (slice(8, 16), slice(8, 16))
CORNER: Region = (slice(0, 12), slice(0, 12))
EVERYWHERE: Region = (slice(None), slice(None))
Reading = tuple[int, Region, float]  # of which map of the first layer, where, and with which weight

EXACT = 1e-4  # an exact map is off by no more than this part of its truth's maximum
FOUND = 0.7  # the share of a map's energy that must lie where the score is decided, for it to have found the place
LEAK = 1e-5  # what may lie on pixels that the score cannot depend on, as a part of the map's maximum
FLAT = 1e-6  # a map that varies by less than this part of its maximum is flat


@dataclass(frozen=True, eq=False)
class Known:
    """A network, its picture, and the exact answer for class `target`, the way to nothing being the way to black.

    `build`    makes the network, which takes (n, 3, 24, 24) in [0, 1] and gives two logits
    `pixels`   (3, 24, 24) float32 in [0, 1]
    `truth`    (24, 24) float64: what each pixel adds along the straight way from black (Aumann and Shapley 1974); on a
               network that is linear, weight x input; it adds up to the logit less that of black
    `shares`   (24, 24) float64: at each pixel the Shapley value of its block of 8 x 8, hidden blocks being black
    `read`     (24, 24) bool: the pixels that the logit can depend on at all
    `matters`  (24, 24) bool: those that decide it for this picture
    """

    name: str
    story: str
    build: Callable[[], nn.Module]
    pixels: npt.NDArray[np.float32]
    truth: Tensor
    shares: Tensor
    read: Tensor
    matters: Tensor
    target: int = 0


@dataclass(frozen=True)
class Judged:
    """What became of a map.

    `outcome`  exact: equals `truth`, or `shares`; found: at least 0.7 of its energy lies where the score is decided;
               flat: the same everywhere; astray: none of these; refused: there is no map
    `share`    of the energy (absolute values of what the method's view shows, enlarged to the picture) in `matters`,
               grown by the method's own spread; NaN for a flat map
    `error`    largest difference from `truth` as a part of its maximum; infinite for a map of another size
    `leak`     largest absolute value outside `read`, grown likewise, as a part of the map's
    `said`     the sentence of a refusal
    """

    outcome: str
    share: float = float("nan")
    error: float = float("inf")
    leak: float = float("nan")
    said: str = ""


@dataclass(frozen=True)
class Answer:
    """A method's raw map (h, w) of a case, None where it refused, how it is judged, and what its record warns of."""

    values: Tensor | None
    judged: Judged
    verdicts: tuple[Verdict, ...] = ()


# How methods of samples and segments are asked here: on blocks of the regions' size, black being nothing.
FORMS = {
    "expected_gradients": "baselines=black,samples=32", "extremal_perturbation": "steps=60,areas=0.1",
    "hsic": "samples=256,grid=6,baseline=black",
    "lime": "samples=200,segments=9,segmentation=grid,baseline=black,bootstrap=0,alpha=0",
    "meaningful_perturbation": "steps=60,value=logit",
    "occlusion": "window=8,stride=8,baseline=black", "rise": "samples=600,grid=6,baseline=black,value=logit",
    "scorecam": "baseline=black", "shap_gradient": "baselines=black,background=4,samples=32",
    "shap_kernel": "samples=512,segments=9,segmentation=grid,baseline=black",
    "shap_partition": "evaluations=256,baseline=black", "smoothgrad": "samples=16", "sobol": "grid=6,baseline=black",
    "vargrad": "samples=16",
}


# --- running and judging ---
def methods() -> list[Attribution]:
    """Every attribution of the catalog, by name, in its form of FORMS."""
    names = sorted(name for name, entry in catalog.entries().items() if entry.kind == "attribution")
    found = [catalog.parse(f"{name}({FORMS[name]})" if name in FORMS else name) for name in names]
    return [one for one in found if isinstance(one, Attribution)]


def model(known: Known) -> Model:
    """The network of a case, whose normalisation changes nothing: black is 0."""
    return Model(known.build().eval(), mean=[0.0] * 3, std=[1.0] * 3, size=SIDE, labels=("this", "other"),
                 spec=f"constructed:{known.name}")


def subject(known: Known) -> Subject:
    """The case as analyzers take it: its model, its picture, its class."""
    return Subject((model(known),), Images.of([Image.of(f"{known.name}.png", known.pixels, label=known.target)]),
                   (Target(f"class:{known.target}"),), evidence="off")


def answers(analyzers: Sequence[Attribution], known: Known,
            spread: Callable[[Attribution], int] = lambda _: 0) -> list[Answer]:
    """What every method makes of a case; spread: by how many pixels its own way of looking blurs a place."""
    sheets = sheets_of(analyzers, made := subject(known))
    attribute(sheets, made)
    found = []
    for sheet in sheets:
        if sheet.problem is not None:
            found.append(Answer(None, Judged("refused", said=str(sheet.problem))))
            continue
        (leaf,) = sheet.leaves
        (panel,) = (panel for panel in leaf.panels if isinstance(panel, Heatmap))
        values = torch.from_numpy(panel.values)
        found.append(Answer(values, judge(values, known, panel.view, spread(sheet.analyzer)), leaf.verdicts))
    return found


def judge(values: Tensor, known: Known, view: View = "signed", spread: int = 0) -> Judged:
    """A raw map (h, w) against the answer; a map smaller than the picture may spread by one of its cells more."""
    top = float(values.abs().max())
    if not np.isfinite(top):
        return Judged("astray")
    if float(values.max() - values.min()) <= FLAT * top:
        return Judged("flat", leak=0.0 if top == 0 else 1.0)
    shown = enlarged(values, view, (SIDE, SIDE)).double().abs()
    reach = spread + (0 if values.shape == (SIDE, SIDE) else -(-SIDE // min(values.shape)))
    energy, peak = float(shown.sum()), float(shown.max())
    share = float(shown[grown(known.matters, reach)].sum()) / energy if energy else float("nan")
    outside = shown[~grown(known.read, reach)]
    leak = float(outside.max()) / peak if energy and outside.numel() else 0.0
    error = off(values, known.truth)
    exact = min(error, off(values, known.shares)) <= EXACT
    return Judged("exact" if exact else "found" if share >= FOUND else "astray", share, error, leak)


def off(values: Tensor, truth: Tensor) -> float:
    """The largest difference of two maps as a part of the second's maximum; infinite where they cannot be compared."""
    scale = float(truth.abs().max())
    return float((values - truth).abs().max()) / scale if values.shape == truth.shape and scale else float("inf")


def grown(mask: Tensor, pixels: int) -> Tensor:
    """A mask (H, W) with all that lies within so many rows and columns of it."""
    wide = F.max_pool2d(mask[None, None].float(), 2 * pixels + 1, 1, pixels)[0, 0]
    return wide > 0


# --- networks ---
class Corner(nn.Module):
    """What lies in the top left quarter of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, K, h, w) -> (n, K, h/2, w/2)."""
        return x[..., : x.shape[-2] // 2, : x.shape[-1] // 2]


def _net(colours: Sequence[int], *parts: tuple[str, nn.Module]) -> nn.Module:
    """Map k of the first layer is the mean of colours[k] in each cell."""
    eyes = nn.Conv2d(3, len(colours), CELL, CELL, bias=False)
    with torch.no_grad():
        eyes.weight.zero_()
        for k, colour in enumerate(colours):
            eyes.weight[k, colour] = 1 / CELL**2
    return nn.Sequential(OrderedDict([("eyes", eyes), ("relu", nn.ReLU()), *parts]))


def _flattened(colours: Sequence[int], *parts: tuple[str, nn.Module]) -> nn.Module:
    return _net(colours, ("flat", nn.Flatten()), *parts)


def _reader(units: Sequence[Sequence[Reading]], offsets: Sequence[float] = (), maps: int = 1) -> nn.Linear:
    """Each unit is a weighted sum of regions' means, and an offset."""
    layer = nn.Linear(maps * CELLS**2, len(units), bias=bool(offsets))
    with torch.no_grad():
        layer.weight.zero_()
        if offsets:
            layer.bias.copy_(torch.tensor(offsets))
        for row, readings in zip(layer.weight.view(len(units), maps, CELLS, CELLS), units, strict=True):
            for k, (rows, columns), weight in readings:
                cells = tuple(slice(part.start // CELL, part.stop // CELL) for part in (rows, columns))
                row[k][cells] += weight / row[k][cells].numel()
    return layer


def _last(weights: Sequence[Sequence[float]], offsets: Sequence[float] = ()) -> nn.Linear:
    layer = nn.Linear(len(weights[0]), len(weights), bias=bool(offsets))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights))
        if offsets:
            layer.bias.copy_(torch.tensor(offsets))
    return layer


def _linear(first: Sequence[Reading], second: Sequence[Reading]) -> nn.Module:
    return _flattened([GREEN], ("head", _reader([first, second])))


def _logic(units: Sequence[Sequence[Reading]], offsets: Sequence[float], weights: Sequence[float],
           rest: float = 0.0, *, maps: int = 1) -> nn.Module:
    """Class 0: rest + sum of weights x relu(units); class 1: relu(c)."""
    units, offsets = [*units, [(0, C, 1.0)]], [*offsets, 0.0]
    head = _last([[*weights, 0.0], [0.0] * len(weights) + [1.0]], [rest, 0.0] if rest else ())
    return _flattened([GREEN] * maps, ("units", _reader(units, offsets, maps)), ("relu2", nn.ReLU()), ("head", head))


def _ruled_out() -> nn.Module:
    units = _reader([[(0, A, 1.0)], [(0, B, 1.0)], [(0, C, 1.0)]])
    return _flattened([GREEN], ("units", units), ("relu2", nn.ReLU()),
                      ("head", _last([[1.0, -1.5, 0.0], [1.0, 0.0, -1.5]])))


def _shortcut() -> nn.Module:
    return _net([RED, GREEN], ("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()),
                ("head", _last([[8.0, 0.0], [0.0, 8.0]])))


def _corner() -> nn.Module:
    return _net([GREEN, BLUE], ("corner", Corner()), ("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()),
                ("head", _last([[1.0, 0.0], [0.0, 1.0]])))


# --- pictures and answers ---
def _picture(levels: Sequence[tuple[int, Region, float]], seed: int) -> npt.NDArray[np.float32]:
    """Dim noise in all colours; regions whose mean in one colour is exactly what is asked, with noise on it."""
    rng = np.random.default_rng(seed)
    pixels = 0.05 + 0.2 * rng.random((3, SIDE, SIDE))
    for colour, region, level in levels:
        noise = 0.9 + 0.2 * rng.random(pixels[colour][region].shape)
        pixels[colour][region] = level * noise / noise.mean()
    return pixels.astype(np.float32)


def _mask(*regions: Region) -> Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    for region in regions:
        mask[region] = True
    return mask


@dataclass(frozen=True)
class _Effect:
    """What a region does to the logit along the straight way from black, and its Shapley value if that is another."""

    region: Region
    way: float
    fair: float | None = None


def _known(name: str, story: str, build: Callable[[], nn.Module], levels: Mapping[str, float] | None,
           effects: Sequence[_Effect], read: Sequence[Region], *, seed: int) -> Known:
    """A case whose regions are whole blocks and read green alone; levels: the mean of A, B and C."""
    level = {"A": 0.8, "B": 0.8, "C": 0.6} | dict(levels or {})
    pixels = _picture([(GREEN, A, level["A"]), (GREEN, B, level["B"]), (GREEN, C, level["C"])], seed)
    truth, shares = torch.zeros(SIDE, SIDE, dtype=torch.float64), torch.zeros(SIDE, SIDE, dtype=torch.float64)
    green = torch.from_numpy(pixels[GREEN]).double()
    for effect in effects:
        truth[effect.region] = effect.way * green[effect.region] / green[effect.region].sum()
        shares[effect.region] = effect.way if effect.fair is None else effect.fair
    return Known(name, story, build, pixels, truth, shares, _mask(*read),
                 _mask(*(e.region for e in effects if abs(e.way) > 0.1)))


def _coloured(name: str, story: str, build: Callable[[], nn.Module], pixels: npt.NDArray[np.float32], colour: int,
              region: Region, weight: float, matters: Sequence[Region]) -> Known:
    """A case that reads one colour, all over a region, with one weight."""
    truth = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    truth[region] = weight * torch.from_numpy(pixels[colour]).double()[region]
    blocks = truth.unfold(0, 8, 8).unfold(1, 8, 8).sum((2, 3))
    shares = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)
    return Known(name, story, build, pixels, truth, shares, _mask(region), _mask(*matters))


def _watermark() -> Known:
    mark = (slice(0, 4), slice(20, 24))
    pixels = _picture([(RED, EVERYWHERE, 0.0), (RED, mark, 0.9), (GREEN, EVERYWHERE, 0.0), (GREEN, MIDDLE, 0.9)], 9)
    return _coloured("shortcut", "the object is in the middle, but the logit is the mean red, and only a watermark in "
                     "a corner is red", _shortcut, pixels, RED, EVERYWHERE, 8 / SIDE**2, [mark])


def _head_of_one_cell() -> Known:
    pixels = _picture([(GREEN, A, 0.8), (GREEN, B, 0.8), (GREEN, C, 0.8), (BLUE, B, 0.8)], 10)
    return _coloured("one cell", "the head sees the top left quarter of the maps alone (as in DiFull), and means its "
                     "green", _corner, pixels, GREEN, CORNER, 4 / SIDE**2, [CORNER])


def known() -> tuple[Known, ...]:
    """All cases. Weights and pictures are the same each time."""
    a, b, c = (0, A, 1.0), (0, B, 1.0), (0, C, 1.0)
    minus_a, minus_b = (0, A, -1.0), (0, B, -1.0)
    steep, edge = 1000.0, 0.7995
    case = partial(_known, levels=None)
    return (
        case("region", "the logit is a: linear", partial(_linear, [a], [c]), effects=[_Effect(A, 0.8)], read=[A],
             seed=0),
        case("contrast", "the logits are a - b and b - a: two classes, two regions", partial(
            _linear, [a, minus_b], [b, minus_a]), levels={"B": 0.3}, effects=[_Effect(A, 0.8), _Effect(B, -0.3)],
            read=[A, B], seed=1),
        case("ruled out", "a - 1.5 b, and a - 1.5 c for the other class: what they share speaks for both, and each is "
             "ruled out by a place of its own", _ruled_out, levels={"B": 0.3},
             effects=[_Effect(A, 0.8), _Effect(B, -0.45)], read=[A, B], seed=2),
        case("and", "relu(a + b - 1): both are needed", partial(_logic, [[a, b]], [-1.0], [1.0]),
             effects=[_Effect(A, 0.3), _Effect(B, 0.3)], read=[A, B], seed=3),
        case("or", "relu(a + b) - relu(a + b - 1): either is nearly enough", partial(
            _logic, [[a, b], [a, b]], [0.0, -1.0], [1.0, -1.0]), effects=[_Effect(A, 0.5), _Effect(B, 0.5)],
            read=[A, B], seed=4),
        case("xor", "relu(a - b) + relu(b - a): one of them, but not both", partial(
            _logic, [[a, minus_b], [b, minus_a]], [0.0, 0.0], [1.0, 1.0]), levels={"B": 0.3},
            effects=[_Effect(A, 0.8, fair=0.5), _Effect(B, -0.3, fair=0.0)], read=[A, B], seed=5),
        case("cancellation", "a - a + b: what A says is taken back", partial(
            _logic, [[a], [(1, A, 1.0)], [b]], [0.0] * 3, [1.0, -1.0, 1.0], maps=2), effects=[_Effect(B, 0.8)],
            read=[A, B], seed=6),
        case("saturation", "1 - relu(1 - 1.375 a), and 1.375 a is 1.1: more of it changes nothing", partial(
            _logic, [[(0, A, -1.375)]], [1.0], [-1.0], 1.0), effects=[_Effect(A, 1.0)], read=[A], seed=7),
        case("step", "b + 0.05 (relu(z) - relu(z - 1)), z = 1000 (a - 0.7995), and z is 0.5: the gradient is largest "
             "where little is at stake", partial(_logic, [[(0, A, steep)], [(0, A, steep)], [b]],
                                           [-steep * edge, -steep * edge - 1, 0.0], [0.05, -0.05, 1.0]),
             effects=[_Effect(A, 0.025), _Effect(B, 0.8)], read=[A, B], seed=8),
        _watermark(),
        _head_of_one_cell(),
        case("constant", "the logit is 0.5 whatever the picture", partial(_logic, [[a]], [0.0], [0.0], 0.5), effects=[],
             read=[], seed=11),
    )
