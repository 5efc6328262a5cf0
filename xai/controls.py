"""Maps that know nothing of the network, which every map must beat; and maps that come from elsewhere, to be judged."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xai import catalog
from xai.analyzer import Maps, Passes, param
from xai.attribution import Attribution
from xai.batch import Batch
from xai.errors import XaiError, error
from xai.model import Model
from xai.targets import Bound

SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
FROM = "maps:"  # how a folder of finished maps is named where a method is expected


@dataclass(frozen=True)
class Control(Attribution):
    """A map that never asks the network."""

    needs: ClassVar[frozenset[str]] = frozenset({"forward", "images"})

    @classmethod
    def name(cls) -> str:
        """A word of its own: all stand in one file."""
        return cls.__name__.lower()

    def check_passes(self, model: Model) -> Passes | None:
        """None: nothing is to be checked."""
        return None


@dataclass(frozen=True)
class Random(Control):
    """Random map: uniform noise in [0, 1), a number a pixel, the same whatever the network."""

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size."""
        shape = batch.inputs.shape[-2:]
        return Maps(torch.stack([torch.rand(shape, generator=batch.generator(i, self.name()))
                                 for i in range(len(batch))]))


@dataclass(frozen=True)
class Centre(Control):
    """Centre Gaussian: exp(-(u^2 + v^2) / 2), u and v the distances from the centre in quarters of each side."""

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size."""
        rows, columns = (_bell(int(side)) for side in batch.inputs.shape[-2:])
        return Maps((rows[:, None] * columns).expand(len(batch), -1, -1).clone())


def _bell(side: int) -> Tensor:
    place = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    return (-((place - 0.5) * 4).square() / 2).exp()


@dataclass(frozen=True)
class Sobel(Control):
    """Sobel edges: the size of the grey picture's gradient, by the 3x3 kernels of Sobel and Feldman (1968)."""

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, H, W) at the input's size."""
        grey = batch.model.preprocessing.undo(batch.inputs.float()).mean(1, keepdim=True)
        kernel = grey.new_tensor(SOBEL)
        both = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.T])[:, None])
        return Maps(both.square().sum(1).sqrt())


CONTROLS: tuple[Control, ...] = (Random(), Centre(), Sobel())


@dataclass(frozen=True)
class Given(Control):
    """Finished maps: `<folder>/<picture's name without its ending>.npy`, (h, w), covering what the network saw; or
    `<picture's hash>-map.npy`, as `--save npy` writes them.

    Raises XaiError where one is missing, is no array of numbers with two axes, or has not the input's shape up to a
    cell.
    """

    folder: str = param("", "where the maps lie")

    def fits(self, names: Sequence[str]) -> None:
        """Raise XaiError where a file would be taken for several of the pictures."""
        stems = Counter(Path(name).stem for name in names)
        twice = next((s for s, n in stems.items() if n > 1 and (Path(self.folder) / f"{s}.npy").exists()), None)
        if twice is not None:
            raise error("the maps", "one a picture", f"{twice}.npy for {stems[twice]} pictures of that name",
                        "Name them <hash>-map.npy, as --save npy does")

    def maps(self, batch: Batch, target: Bound) -> Maps:
        """(n, h, w) as they were stored; all of one shape."""
        found = [self._read(batch, i) for i in range(len(batch))]
        if len({one.shape for one in found}) > 1:
            found = [F.interpolate(one[None, None], batch.inputs.shape[-2:], mode="bilinear")[0, 0] for one in found]
        return Maps(torch.stack(found))

    def _read(self, batch: Batch, i: int) -> Tensor:
        name = batch.images[i].name
        path = Path(self.folder) / f"{batch.hashes[i]}-map.npy"
        path = path if path.is_file() else path.with_name(f"{Path(name).stem}.npy")
        try:
            values = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise error("the maps", f"in {self.folder}, one .npy a picture", f"none called {path.name}",
                        "Write them with --save npy, or rename the file") from None
        except (OSError, ValueError, EOFError) as problem:
            raise error(f"the map {path.name}", "a readable .npy file of numbers", str(problem) or "a damaged file",
                        "Write it again with numpy.save") from problem
        height, width = (int(side) for side in batch.inputs.shape[-2:])
        fits = values.ndim == 2 and values.dtype.kind in "fiu" and values.size > 0 and (
            abs(values.shape[0] * width - values.shape[1] * height) <= max(height, width))
        if not fits:
            raise error(f"the map {path.name}", f"numbers (h, w) of the input's shape {height} x {width}, or of that "
                        "shape made smaller", f"{values.dtype} of shape {values.shape}",
                        "Give the map of what the network saw, after its crop")
        return torch.from_numpy(values.astype(np.float32))


def methods_of(of: str | Attribution | Sequence[Attribution], again: bool = False) -> tuple[Attribution, ...]:
    """The attributions that `of` names: `gradcam,smoothgrad(samples=20)`, a control, or `maps:FOLDER`."""
    if not isinstance(of, str):
        found: list[Any] = [of] if isinstance(of, Attribution) else list(of)
    else:
        own = {one.name(): one for one in CONTROLS}
        found = []
        for text in catalog.split(of):
            found.append(own[text] if text in own else Given(text.removeprefix(FROM)) if text.startswith(FROM)
                         else catalog.parse(text))
    wrong = next((one for one in found if not isinstance(one, Attribution)), None)
    if wrong is not None or not found:
        got = getattr(wrong, "name", lambda: repr(wrong))() if wrong is not None else "none"
        raise error("what is judged", "an attribution, or several separated by commas", got,
                    "For example --set of=gradcam,rise; `xai methods list` names them")
    if again and any(isinstance(one, Given) for one in found):
        raise error("what this metric judges", "a method that it can run again", "finished maps",
                    "Name the method itself")
    return tuple(found)


def named(method: Attribution) -> str:
    """The method as a person writes it, with what differs from its defaults."""
    changed = [f"{f.name}={getattr(method, f.name)}" for f in dataclasses.fields(method)
               if getattr(method, f.name) != f.default]
    return f"{FROM}{method.folder}" if isinstance(method, Given) else \
        f"{method.name()}({', '.join(changed)})" if changed else method.name()


def problems_of(methods: Sequence[Attribution], model: Model) -> dict[Attribution, XaiError]:
    """What stands in the way of those methods that the model cannot serve."""
    found: dict[Attribution, XaiError] = {}
    for method in methods:
        try:
            method.check(model)
        except XaiError as problem:
            found[method] = problem
    return found
