"""The record of a folder as one CSV table: a row a model, method and picture."""

from __future__ import annotations

import csv as csv_writer
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from reports.layout import top1
from reports.page import inside
from xai.panels import Table
from xai.result import ImageRecord, Result, Run, Verdict

COLUMNS = (
    "model",
    "weights",
    "random_weights",
    "method",
    "version",
    "picture",
    "hash",
    "label",
    "target",
    "top1",
    "probability",
    "checks_passed",
    "checks_failed",
    "failed",
    "forwards",
    "backwards",
    "check_forwards",
    "check_backwards",
    "seconds",
    "peak_memory_bytes",
    "device",
    "precision",
    "seed",
)


def csv(folder: str | Path) -> str:
    """The table of `folder` (a run or one result) as CSV with a header, RFC 4180 quoting, lines that end in a newline.

    `failed` names the failed checks. `forwards`, `backwards`, those of the checks and `seconds` are the method's cost
    divided by its pictures; `peak_memory_bytes` is that of the whole method. A result without pictures is one row; a
    metric's is its table of scores. Text
    that a spreadsheet would run as a formula (it begins with =, +, -, @, tab or return) gets a leading apostrophe.
    Raises XaiError where the record is missing or damaged.
    """
    folder = Path(folder)
    stream = io.StringIO()
    writer = csv_writer.writer(stream, lineterminator="\n")
    results = [Result.load(inside(folder, name)) for name in Run.load(folder).results]
    scores = _scores(results)
    writer.writerow(COLUMNS if scores is None else [column.name for column in scores.columns])
    for row in (row for result in results for row in _rows(result)) if scores is None else scores.rows:
        writer.writerow([_cell(value) for value in row])
    return stream.getvalue()


def _scores(results: Sequence[Result]) -> Table | None:
    """The table of a metric that stands alone: its scores picture by picture, or their means where there is none."""
    if len(results) != 1 or results[0].images:
        return None
    tables = {p.key: p for p in results[0].panels if isinstance(p, Table)}
    return tables.get("by_picture") or tables.get("scores")


def _rows(result: Result) -> Iterator[list[str | int | float | bool | None]]:
    model = result.models[0] if result.models else None
    tables = {p.picture: p for p in result.panels if isinstance(p, Table) and p.key == "predictions"}
    share = max(1, len(result.images))
    images: list[ImageRecord | None] = [*result.images] or [None]
    for image in images:
        name, probability = top1(tables.get(image.hash)) if image else ("", None)
        verdicts = _verdicts(result, image)
        yield [
            "; ".join(m.spec for m in result.models),
            model.weights_hash if model else "",
            any(m.random_weights for m in result.models),
            result.analyzer,
            result.version,
            image.name if image else "",
            image.hash if image else "",
            image.label if image else "",
            (image.target if image else "") or result.target,
            name,
            probability,
            sum(v.passed is True for v in verdicts),
            sum(v.passed is False for v in verdicts),
            "; ".join(v.name for v in verdicts if v.passed is False),
            result.cost.forwards / share,
            result.cost.backwards / share,
            result.cost.check_forwards / share,
            result.cost.check_backwards / share,
            result.cost.seconds / share,
            result.cost.peak_memory,
            result.provenance.device,
            result.provenance.precision,
            result.provenance.seed,
        ]


def _verdicts(result: Result, image: ImageRecord | None) -> list[Verdict]:
    """The verdicts of a picture, and those of the whole result."""
    return [v for v in result.verdicts if v.picture is None or (image is not None and v.picture == image.hash)]


def _cell(value: str | int | float | bool | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(int(value)) if value == int(value) else repr(value)
    text = str(value)
    return "'" + text if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
