"""Extremal perturbation: of all smooth masks of a given area, the one that keeps the class best."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from analyzers.attribution._gradients import wide
from analyzers.attribution._learned import course, softened, told, worth
from xai.analyzer import Maps, Passes, param
from xai.attribution import FEW, Attribution
from xai.batch import Batch
from xai.errors import error
from xai.model import Model
from xai.panels import AnyPanel, View
from xai.perturbation import Found, stacked
from xai.sampler import VALUES, unit_of
from xai.targets import Bound

VARIANTS = ("preserve", "delete", "dual")
MOMENTUM, GROWTH = 0.9, 1.0035
COLDNESS = 20  # of the smooth maximum
ALIKE = 1e-9  # mask values that differ by less are one value
MOST = 16  # areas
Sums = list[tuple[Tensor, Tensor]]
LEAST = 0.5  # pixels from one strength of the blur to the next: less blurs nothing


@dataclass(frozen=True)
class ExtremalPerturbation(Attribution):
    """Extremal perturbation: the part of the picture, of a given area, that speaks most for the class.

    For each area a: max over p in [0, 1] of S(perturb(x, m)) - w mean((sort(m) - r_a)^2), m the smooth maximum of p on
    a grid under a kernel of radius sigma, r_a a share a of ones, w = weight * 1.0035^t; perturb blurs the more the
    smaller m is. By gradient descent with momentum and dampening 0.9 from p = 1, every other step on the mirrored
    picture. preserve: the mask says what is kept; delete: what is blurred so that S falls; dual: both at once. The map
    is the sum of the masks of all areas. Equal values of m share their part of r_a: at the start all are equal, and
    sorting would keep the bottom of the picture. Where no score depends on the mask (a flat picture), the map is 0.
    View: relu.

    Reads     one model, images
    Yields    one map an image, at the input's size, 0 to the number of areas; the objective over the steps; for each
              area that of its mask, with the margin around the picture, and the score of what it keeps
    Raises    XaiError if no gradient reaches the input, or for areas that are no shares
    Cost      `steps` forwards and one backward less for each area (twice for dual), and one forward
    Reference Fong, Patrick, Vedaldi 2019, "Understanding deep networks via extremal perturbations and smooth masks",
              arXiv:1910.08485, section 3; kernel and optimiser as in TorchRay, with lengths in shares of the picture
    """

    areas: str | float = param("0.025,0.05,0.1,0.2", "shares of the picture that the masks take, parted by commas")
    steps: int = param(800, "looks at the masked pictures; between each two the masks change once", low=2)
    variant: str = param("preserve", "what a mask does: preserve, delete, or dual (both)", choices=VARIANTS)
    value: str = param("logit", "what of the class is explained: logit, probability or log_odds", choices=VALUES)
    rate: float = param(0.01, "learning rate", low=0)
    weight: float = param(300.0, "weight of the area at the first step", low=0)
    sigma: float = param(0.09375, "radius of the mask's smallest part, in short sides of the picture (21 px of 224)",
                         low=0.001, high=0.5)
    blur: float = param(0.0893, "standard deviation of the strongest blur, in short sides of the picture (20 px of "
                        "224), at least half a pixel a level", low=0.001)
    levels: int = param(8, "strengths of the blur, the last of them none", low=2)
    flip: bool = param(True, "look at the mirrored picture in every other step")

    needs = frozenset({"gradients", "images"})
    view: ClassVar[View] = "relu"

    lessens: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shares_of()

    def shares_of(self) -> tuple[float, ...]:
        """The areas as numbers. Raises XaiError where they are none."""
        try:
            found = tuple(float(part) for part in str(self.areas).split(","))
        except ValueError:
            found = ()
        if not 0 < len(found) <= MOST or not all(0 < area < 1 for area in found):
            raise error(f"{self.name()}.areas", f"1 to {MOST} shares between 0 and 1", repr(self.areas),
                        "For example 0.05,0.1,0.2")
        return found

    def passes(self, model: Model) -> Passes:
        """A forward and a backward a step and mask; the last step only looks, beside the blurred picture."""
        forms = len(self.shares_of()) * (2 if self.variant == "dual" else 1)
        return Passes(forwards=self.steps * forms + 1, backwards=(self.steps - 1) * forms)

    def divided(self, by: int) -> ExtremalPerturbation:
        """Few but long steps for the largest area alone, at a tenth of its weight: at first it is the area that drives
        a mask, and all masks look alike."""
        if by == 1 or (self.steps <= FEW and len(self.shares_of()) == 1):
            return self
        return dataclasses.replace(self, steps=min(self.steps, FEW), areas=max(self.shares_of()), rate=50 * self.rate,
                                   weight=self.weight / 10)

    def spared(self, probe: Attribution) -> str:
        """A sentence that says so."""
        if probe == self or not isinstance(probe, ExtremalPerturbation):
            return ""
        return (f"Checked with {probe.steps} steps, 50 times as long, for the area {probe.areas:g} alone, at a tenth "
                "of its weight.")

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size, 0 to the number of areas."""
        return stacked([self._picture(batch, i, target) for i in range(len(batch))], batch)

    def _picture(self, batch: Batch, i: int, target: Bound) -> Found:
        """All areas together, and nothing of another picture."""
        x, areas = batch.inputs[i], self.shares_of()
        side = min(x.shape[1:])
        strongest = max(self.blur * side, LEAST * (self.levels - 1))
        grid, levels = Grid((x.shape[1], x.shape[2]), self.sigma * side), pyramid(x, strongest, self.levels)
        p = grid.start(len(areas), wide(x))
        pace, touched = torch.zeros_like(p), False
        rows: list[list[float]] = []
        for step in range(self.steps):
            mask, sums = grid.smooth(p)
            price, push = self._price(mask, areas, step)
            shown = grid.crop(mask)
            forms = {"preserve": shown, "delete": 1 - shown}.get(self.variant, torch.cat([shown, 1 - shown]))
            painted, slope = perturbed(levels, forms)
            if step == self.steps - 1:
                more = torch.cat([painted, levels[:1]])
                scores = batch.score(more, worth(batch, target, i, len(more), self.value)).cpu().double()
                rows.append((self._reward(scores[:-1], len(areas)) - price).tolist())
                break
            turned = self.flip and step % 2 == 0
            bound = worth(batch, target, i, len(forms), self.value)
            score, found = batch.input_gradient(painted.flip(3) if turned else painted, bound)
            pull = (wide(found.flip(3) if turned else found) * slope).sum(1)  # how S changes with the form's own mask
            touched = touched or bool((pull != 0).any())
            rows.append((self._reward(score.cpu().double(), len(areas)) - price).tolist())
            rise = grid.back(p, sums, grid.uncrop(pull.view(-1, *shown.shape).sum(0)) - push)
            pace = rise if step == 0 else MOMENTUM * pace + (1 - MOMENTUM) * rise
            p = (p + self.rate * pace).clamp(0, 1)
        values = shown.sum(0) if touched else torch.zeros_like(shown[0])
        return Found(values, panels=tuple(self._panels(batch, i, target, mask, scores, rows)))

    def _price(self, mask: Tensor, areas: tuple[float, ...], step: int) -> tuple[Tensor, Tensor]:
        """What the areas cost at this step, (k,) on the CPU, and its gradient at the masks (k, ...)."""
        weight = self.weight * GROWTH**step
        found = [off_area(one, area) for one, area in zip(mask, areas, strict=True)]
        return (weight * torch.stack([cost for cost, _ in found])).cpu(), weight * torch.stack([g for _, g in found])

    def _reward(self, scores: Tensor, count: int) -> Tensor:
        """(forms,) -> (k,): what is to be large."""
        if self.variant == "dual":
            return scores[:count] - scores[count:]
        return scores if self.variant == "preserve" else -scores

    def _panels(self, batch: Batch, i: int, target: Bound, mask: Tensor, scores: Tensor,
                rows: list[list[float]]) -> list[AnyPanel]:
        areas, name = self.shares_of(), unit_of(target, batch.model.head.kind, self.value)
        here = worth(batch, target, i, 1, self.value)(batch.output()[i : i + 1]).item()
        forms: list[tuple[str, float | None, float]] = [("the picture itself", 1.0, here)]
        sizes = mask.flatten(1).mean(1).tolist()
        if self.variant != "delete":
            forms += [(f"area {area:g} kept", size, s) for area, size, s in
                      zip(areas, sizes, scores[: len(areas)].tolist(), strict=True)]
        if self.variant != "preserve":
            forms += [(f"area {area:g} blurred", 1 - size, s) for area, size, s in
                      zip(areas, sizes, scores[-1 - len(areas) : -1].tolist(), strict=True)]
        forms.append(("the picture, blurred as a whole", 0.0, scores[-1].item()))
        return [course(batch, i, rows, [f"area {area:g}" for area in areas]), told(batch, i, forms, name)]


class Grid:
    """Masks (k, h', w') from parameters p on a coarser grid: the smooth maximum of p times a kernel around each node.

    The kernel is exp(-2 max(0, d / sigma - 1/2)^2), d the distance in pixels from the node; the smooth maximum of z_j
    is sum z_j exp(20 z_j) / sum exp(20 z_j), over the nodes in a window of some 4 steps around the pixel. The mask goes
    over the edges of the picture by a margin of sigma and more. Nodes stand sigma / 3 apart (TorchRay: 7 of 21 px).
    """

    def __init__(self, size: tuple[int, int], sigma: float) -> None:
        self.step, self.margin = max(1, round(sigma / 3)), round(sigma)
        radius = 1 + math.ceil(sigma / self.step)
        self.padding = 1 + math.ceil((self.margin + sigma) / self.step)
        self.size, self.window = size, 2 * radius + 1
        self.nodes = tuple(math.ceil(side / self.step) for side in size)
        self.blocks = tuple(nodes + 2 * self.padding - self.window + 1 for nodes in self.nodes)
        self.full = tuple(blocks * self.step - self.step + 1 for blocks in self.blocks)
        place = torch.arange(self.step, dtype=torch.float64)  # of a pixel in its block
        shift = self.step * (self.padding - torch.arange(self.window, dtype=torch.float64)) - self.margin
        along = (place + shift[:, None]).square()  # (window, step): squared distances along one axis
        distance = (along[:, None, :, None] + along[None, :, None, :]).sqrt()
        self._kernel = torch.exp(-2 * (distance / sigma - 0.5).clamp_min(0).square()).flatten(2)  # of a row and column

    def start(self, count: int, like: Tensor) -> Tensor:
        """(k, nodes, nodes) of ones."""
        self._kernel = self._kernel.to(like)
        return torch.ones((count, *self.nodes), dtype=like.dtype, device=like.device)

    def crop(self, mask: Tensor) -> Tensor:
        """(k, h', w') -> (k, H, W): without the margin."""
        m, (h, w) = self.margin, self.size
        return mask[:, m : m + h, m : m + w]

    def uncrop(self, slope: Tensor) -> Tensor:
        """(k, H, W) -> (k, h', w'), zero in the margin."""
        (h, w), m = self.size, self.margin
        return F.pad(slope, (m, self.full[1] - w - m, m, self.full[0] - h - m))

    def smooth(self, p: Tensor) -> tuple[Tensor, Sums]:
        """The masks (k, h', w'), and what `back` needs of the way there."""
        sums = [self._sums(one) for one in p]
        return torch.stack([self._laid(mask) for mask, _ in sums]), sums

    def back(self, p: Tensor, sums: Sums, slope: Tensor) -> Tensor:
        """The gradient (k, nodes, nodes) at p of something whose gradient at the masks is slope (k, h', w')."""
        found = F.pad(torch.zeros_like(p), (self.padding,) * 4)
        (high, broad), edge = self.blocks, self.padding
        for one, (mask, total), its, out in zip(p, sums, slope, found, strict=True):
            share = self._blocks(its) / total
            fixed, growing = (share * (1 - COLDNESS * mask))[:, :, None], (share * COLDNESS)[:, :, None]
            for row in range(self.window):
                nodes, kernel, e = self._terms(one, row)
                part = torch.bmm(e.mul_(kernel), fixed)[:, :, 0]
                part = (part + nodes * torch.bmm(e.mul_(kernel), growing)[:, :, 0]).view(high, broad, -1)
                for column in range(self.window):
                    out[row : row + high, column : column + broad] += part[:, :, column]
        return found[:, edge:-edge, edge:-edge]

    def _sums(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """One mask and its sums of exponentials, (blocks, step * step) each."""
        top, total = torch.zeros_like(p[:1, :1]), torch.zeros_like(p[:1, :1])
        for row in range(self.window):
            nodes, kernel, e = self._terms(p, row)
            total = total + e.sum(1)
            top = top + torch.bmm(nodes[:, None], e.mul_(kernel))[:, 0]
        return top / total, total

    def _terms(self, p: Tensor, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the nodes in one row of all windows: p (blocks, window), the kernel (window, step * step), exp(20 z)."""
        padded = F.pad(p, (self.padding,) * 4)[row : row + self.blocks[0]]
        nodes = padded.unfold(1, self.window, 1).reshape(-1, self.window)
        return nodes, self._kernel[row], (nodes[:, :, None] * (COLDNESS * self._kernel[row])).exp_()

    def _laid(self, blocks: Tensor) -> Tensor:
        """(blocks, step * step) -> (h', w')."""
        tiles = blocks.view(*self.blocks, self.step, self.step).transpose(1, 2)
        return tiles.flatten(2).flatten(0, 1)[: self.full[0], : self.full[1]]

    def _blocks(self, mask: Tensor) -> Tensor:
        """The inverse of `_laid`, with zeros for what it cuts off."""
        padded = F.pad(mask, (0, self.step - 1, 0, self.step - 1))
        tiles = padded.view(self.blocks[0], self.step, self.blocks[1], self.step).transpose(1, 2)
        return tiles.reshape(-1, self.step**2)


def off_area(mask: Tensor, area: float) -> tuple[Tensor, Tensor]:
    """mean((sort(m) - r)^2), r zeros and then a share `area` of ones, and its gradient at the mask.

    Values that are equal share their part of r in the gradient.
    """
    values, order = mask.flatten().sort(stable=True)
    count, place = len(values), torch.arange(len(values), device=mask.device)
    first = int(count * (1 - area))
    cost = (values - (place >= first).to(values)).square().mean()
    new = torch.ones(count + 1, dtype=torch.bool, device=mask.device)
    new[1:-1] = values[1:] - values[:-1] > ALIKE
    edges = new.nonzero().flatten()
    group = new[:-1].cumsum(0) - 1
    low, high = edges[group], edges[group + 1]
    part = (high - low.clamp_min(first)).clamp_min(0).to(values) / (high - low)
    slope = torch.empty_like(values)
    slope[order] = 2 * (values - part) / count
    return cost, slope.view_as(mask)


def pyramid(x: Tensor, sigma: float, levels: int) -> Tensor:
    """(levels, C, H, W): x blurred with sigma, less and less, and last x itself."""
    return torch.stack([*(softened(x, sigma * (1 - level / (levels - 1))) for level in range(levels - 1)), x])


def perturbed(levels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The picture under masks (k, H, W), 1 = as it is, 0 = blurred most, else between two levels in proportion: (k, C,
    H, W), and how each of its values changes with the mask."""
    place = mask * (len(levels) - 1)
    below = place.nan_to_num().floor().clamp(0, len(levels) - 2)
    share = (place - below)[:, None].to(levels)
    index = below.long()[:, None].expand(-1, levels.shape[1], -1, -1)
    low, high = levels.gather(0, index), levels.gather(0, index + 1)
    return (1 - share) * low + share * high, wide(high - low) * (len(levels) - 1)
