"""The one error that people see: a sentence that says what was wrong, with which value, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class XaiError(Exception):
    """Bad input, told in one sentence: `<what> must be <expected>; got <this>. <what to do>`."""


class OutOfMemory(XaiError):
    """Memory was too little for what was asked at once; less at once may do."""


def error(what: str, expected: str, got: object, do: str) -> XaiError:
    """Build the standard sentence.

    `what` names the input, `expected` says what it must be, `got` is the offending value, `do` is the next step (a full
    sentence without the final stop).
    """
    end = "" if do.endswith("?") else "."
    return XaiError(f"{what} must be {expected}; got {got}. {do.rstrip('.')}{end}")


def near(name: str, known: Iterable[str], count: int = 5) -> list[str]:
    """Up to `count` names from `known` that look like `name` (case ignored), the closest first."""
    table = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), table, n=count, cutoff=0.55)
    inside = [k for k in table if name.lower() in k and k not in close]
    return [table[k] for k in (close + sorted(inside, key=len))[:count]]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that offers near names, or an empty string where nothing is near."""
    names = near(name, known)
    return f"Did you mean {', '.join(names)}?" if names else ""
