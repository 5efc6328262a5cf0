"""The record as CSV: a row a model, method and picture, and no formula that a spreadsheet would run."""

from __future__ import annotations

import csv as csv_reader
import dataclasses
import io
from pathlib import Path

from reports import table
from tests.sample_records import model_record, result, write_run


def test_csv_has_a_row_a_model_method_and_picture(tmp_path: Path) -> None:
    """Names, target, top-1, probability, label, failed checks and the cost a picture; eight rows for 2 x 2 x 2."""
    models = (model_record(), model_record("file:net.py:make", random_weights=True))
    methods = (("gradcam", "Grad-CAM"), ("saliency", "Saliency"))
    made = [result(("coffee", "rocket"), *method, model=model) for model in models for method in methods]
    rows = list(csv_reader.DictReader(io.StringIO(table.csv(write_run(tmp_path / "run", made)))))
    assert [(r["model"], r["method"], r["picture"]) for r in rows] == [
        (m, a, f"{n}.jpg")
        for m in ("xai:photo20", "file:net.py:make")
        for a in ("gradcam", "saliency")
        for n in ("coffee", "rocket")
    ]
    assert rows[0] | {
        "hash": result().images[0].hash, "label": "coffee", "target": "coffee class", "top1": "coffee class",
        "probability": "0.7123",
        "checks_passed": "2", "checks_failed": "0", "failed": "", "forwards": "1", "backwards": "1", "seconds": "0.125",
        "peak_memory_bytes": "311000000", "random_weights": "false", "seed": "0",
    } == rows[0]  # fmt: skip
    assert (rows[1]["failed"], rows[1]["checks_failed"], rows[4]["random_weights"]) == ("class-sensitive", "1", "true")


def test_csv_runs_no_formula(tmp_path: Path) -> None:
    """A picture called =HYPERLINK(...) stays text in a spreadsheet."""
    one = result()
    images = (dataclasses.replace(one.images[0], name='=HYPERLINK("x")', label="-1+1"),)
    dataclasses.replace(one, images=images).save(tmp_path / "r")
    row = next(csv_reader.DictReader(io.StringIO(table.csv(tmp_path / "r"))))
    assert (row["picture"], row["label"]) == ('\'=HYPERLINK("x")', "'-1+1")
