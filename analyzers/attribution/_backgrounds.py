"""Where the methods that average over many baselines draw them from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xai.baselines import LEVELS, of_inputs
from xai.batch import Batch
from xai.errors import error
from xai.images import Images, load_images

DRAWN = ("colours", "noise")
STILL = (*LEVELS, "zero", "blur")


def drawn_from(batch: Batch, i: int, which: str, name: str) -> Callable[[torch.Generator], Tensor]:
    """What draws one baseline (C, H, W) for picture i, on the CPU in float32 whatever the model runs in.

    which: "colours", a flat picture of one random colour; "noise", every pixel random; one of STILL, always that one;
    else a source of pictures, drawn with replacement. Raises XaiError where the normalisation is needed and not known,
    and for pictures of another size.
    """
    ready, shape = batch.model.preprocessing, batch.inputs.shape[1:]
    if which in STILL:
        still = of_inputs(batch.inputs[i : i + 1].float().cpu(), ready, which, name)[0]
        return lambda g: still
    if which in DRAWN:
        low, high = ready.constant(0), ready.constant(1)
        size = (shape[0], 1, 1) if which == "colours" else shape
        return lambda g: (low + (high - low) * torch.rand(size, generator=g)).expand(shape)
    pictures: Images = load_images(which)
    if not len(pictures):
        raise error(f"{name}.baselines", "a source with a picture", repr(which), "Name another")

    def one(g: torch.Generator) -> Tensor:
        chosen = pictures[int(torch.randint(len(pictures), (), generator=g))]
        found = ready(chosen).input
        if found.shape != shape:
            raise error(f"the baseline {chosen.name}", f"of the picture's shape {tuple(shape)} once prepared",
                        tuple(found.shape), "Take baselines that are prepared as the pictures are")
        return found

    return one
