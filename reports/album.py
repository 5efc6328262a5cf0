"""The photographs of one page: each embedded once, as a style rule, however many figures show it."""

from __future__ import annotations

import base64
import hashlib

import numpy as np

from reports.pixels import photograph


class Album:
    """Collects photographs and hands out the class name under which a figure shows each.

    A style rule instead of an <img> lets one data URI serve every figure without a script; what it shows is said by the
    figure's own label, and `print-color-adjust` keeps it on paper.
    """

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}

    def add(self, pixels: np.ndarray) -> str:
        """The class name of a uint8 picture (h, w, 3) or (h, w); equal pixels share one."""
        digest = hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
        name = f"p-{digest[:16]}"
        if name not in self._rules:
            height, width = pixels.shape[:2]
            sharp = "image-rendering:pixelated;" if max(height, width) < 96 else ""
            self._rules[name] = (
                f".xai .{name}{{aspect-ratio:{width}/{height};{sharp}"
                f"background-image:url({data_uri(photograph(pixels))})}}"
            )
        return name

    def css(self) -> str:
        """The style rules of all photographs, in the order in which they came."""
        return "\n".join(self._rules.values())


def data_uri(data: bytes) -> str:
    """Image bytes (PNG or JPEG) as a data URI."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
