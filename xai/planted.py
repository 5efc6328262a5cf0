"""Planted evidence as pictures with labels, boxes and masks: the scenes of `xai.scenes`, rendered as they are read."""

from __future__ import annotations

from xai.images import Images
from xai.scenes import Scene, list_scenes, scene, scenes

__all__ = ["Scene", "planted", "scene", "scenes"]


def planted(count: int, seed: int = 0, variant: str = "plain") -> Images:
    """The first `count` scenes of a seed: each with its class's number (`label_names`), the glyph's box and mask.

    A picture is rendered each time it is read and never kept. variant "null" adds a null patch to each. Raises XaiError
    where the count is below 1, the seed negative or the variant unknown.

    >>> planted(500, seed=7)[499].size
    (64, 64)
    """
    listing = list_scenes(count, seed, variant)
    return Images(listing.entries, listing.label_names)
