"""The colour scale beside a map: its ramp and the numbers of its ends and its middle."""

from __future__ import annotations

from markupsafe import Markup

from reports.pixels import Scale
from reports.wording import number

_FITS = 26  # letters under the narrowest map; longer numbers go without the one in the middle


def ruler(scale: Scale, unit: str = "") -> Markup:
    """The colour scale with the numbers of its ends and its middle."""
    if scale.constant:
        return Markup("")
    past = "≥ " if scale.beyond else ""
    under = "≤ " if scale.beyond and scale.kind == "diverging" else ""
    middle = (scale.low + scale.high) / 2
    labels = (f"{under}{number(scale.low)}", number(middle), f"{past}{number(scale.high)} {unit}".strip())
    if sum(map(len, labels)) > _FITS:
        labels = (labels[0], "", labels[2])
    ticks = Markup("").join(Markup("<span>{}</span>").format(t) for t in labels)
    spoken = f"Colour scale from {labels[0]} to {labels[2]}"
    return Markup(
        '<div class="scale {}" role="img" aria-label="{}"><div class="ramp"></div><div class="ticks">{}</div></div>'
    ).format(scale.kind, spoken, ticks)
