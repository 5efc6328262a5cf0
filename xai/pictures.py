"""What every record shows of a picture: the original, what the network saw of it, what the network said."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xai.batch import Batch
from xai.panels import AnyPanel, Column, Mark, Picture, Table

THUMBNAIL = 320  # pixels of the original's long side that the record keeps


def picture_panels(batch: Batch) -> list[AnyPanel]:
    """The original with the outline of what the network saw, what it saw, and what it said: of every picture."""
    panels: list[AnyPanel] = []
    output = batch.output()
    scores = batch.scores() if output.ndim == 2 and output.shape[1] > 1 else None
    for i, (image, digest) in enumerate(zip(batch.images, batch.hashes, strict=True)):
        small = image.thumbnail(THUMBNAIL)
        ratio = small.shape[1] / image.size[1]
        corners = batch.frames[i].box(*batch.seen[i].shape[:2])
        box = Mark("box", tuple((x * ratio, y * ratio) for x, y in corners), "what the network saw")
        panels.append(Picture(key="original", title=image.name, picture=digest, pixels=small,
                              note=f"{image.size[1]} x {image.size[0]}", marks=(box,)))
        panels.append(Picture(key="seen", title="what the network saw", picture=digest, pixels=batch.seen[i]))
        if scores is not None:
            panels.append(_predictions(scores[i], batch.model.class_name, digest))
    return panels


def _predictions(scores: Tensor, names: Callable[[int], str], digest: str) -> Table:
    top = torch.topk(scores, min(5, len(scores)))
    rows = tuple((names(c), round(p, 6))
                 for c, p in zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Table(key="predictions", title="What the model says", picture=digest, rows=rows,
                 columns=(Column("class"), Column("probability", "probability")))
