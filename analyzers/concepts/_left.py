"""Pictures that could not take part, by what stood in the way."""

from __future__ import annotations

from dataclasses import dataclass, field

from xai.panels import Text


@dataclass
class Left:
    """Pictures that could not take part, by why."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, why: str) -> None:
        """One more."""
        self.names.setdefault(why.rstrip("."), []).append(name)

    def said(self) -> str:
        """All of it in a line."""
        return "; ".join(f"{why}: {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                         for why, names in self.names.items())

    def panel(self) -> Text:
        """That line as a warning."""
        return Text(key="left", title="Pictures that could not take part", text=f"{self.said()}.", tone="warning")
