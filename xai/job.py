"""One analysis as plain data: a method on a model, a target rule and a chunk of pictures; and the plan of such jobs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from xai.result import SCHEMA_VERSION

CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that decides the numbers of one analysis; `chunk` and `threads` are "auto" outside a study, where the
    provenance tells them."""

    spec: str
    weights_hash: str
    pictures: tuple[str, ...]
    geometry: str
    method: str
    version: int
    parameters: dict[str, Any] = field(default_factory=dict)
    target: str = "top1"
    seed: int = 0
    chunk: str = "auto"
    threads: str = "auto"
    precision: str = "float32"
    schema: int = SCHEMA_VERSION

    @property
    def id(self) -> str:
        """Hex sha256 of all of it, first 16 digits."""
        text = json.dumps(asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def chunks(pictures: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Pieces of at most 32, cut from the ordered list, so that a longer list keeps its old pieces."""
    for start in range(0, len(pictures), CHUNK):
        yield tuple(pictures[start : start + CHUNK])


def run_id(jobs: Sequence[Job]) -> str:
    """Eight hex digits that name a run: the hash of its jobs' ids."""
    return hashlib.sha256("".join(sorted(job.id for job in jobs)).encode()).hexdigest()[:8]
