"""The record: a gold one of schema version 1, the published JSON Schema, awkward values, and damaged records."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from torch.testing import assert_close

import xai.result
from tests.sample_records import every_kind, result
from xai import panels as p
from xai.errors import XaiError
from xai.result import (
    SCHEMA_VERSION,
    Cost,
    Failure,
    ImageRecord,
    ModelRecord,
    Provenance,
    Result,
    Run,
    Verdict,
    json_schema,
)

GOLD = Path(__file__).parent / "gold" / f"record-{SCHEMA_VERSION}"
SCHEMA = Path(xai.result.__file__).with_name(f"result.schema-{SCHEMA_VERSION}.json")
RENEW = "UPDATE_GOLD=1 .venv/bin/python -m pytest tests/test_record.py"
PICTURE = "0123456789abcdef"


def gold_panels() -> tuple[p.AnyPanel, ...]:
    """One panel of each of the ten kinds, every field set to something else than its default, by hand."""
    grid = np.array([[-1.5, 0.25, 3.0], [0.0, -0.125, 2.0]], np.float32)
    x = np.array([0.0, 0.5, 1.0])
    return (
        p.Number(key="n", title="Distance", picture=PICTURE, note="Of two.", value=0.1, unit="px", low=-0.5, high=1e-7),
        p.Table(key="t", title="Rows", columns=(p.Column("class"), p.Column("share", "probability")),
                rows=(("tabby, \"cat\"", 0.75), (None, 3), (True, -0.0), ("é\u2028 漢", 1e300))),
        p.Heatmap(key="h", title="Map", picture=PICTURE, values=grid, error=np.abs(grid) / 8, view="relu", unit="logit",
                  over="original", scale=(-1.5, 3.0), axes=(p.Axis("v", "cycles/px"), p.Axis("u", "cycles/px")),
                  marks=(p.Mark("box", ((0.5, 0.0), (2.0, 1.5)), "leaf"), p.Mark("point", ((1.0, 1.0),)))),
        p.Picture(key="p", title="Seen", picture=PICTURE, pixels=np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
                  marks=(p.Mark("outline", ((0.0, 0.0), (3.0, 0.0), (1.5, 1.0)), "ear"),)),
        p.Curve(key="c", title="Curve", x=x, y=np.stack([x, 1 - x]), names=("up", "down"), low=np.stack([x - 1, -x]),
                high=np.stack([x + 1, 2 - x]), axes=(p.Axis("removed", "share"), p.Axis("score"))),
        p.Scatter(key="s", title="Points", xy=np.array([[0.0, 1.0], [2.0, -3.0]]), labels=("a", "b"),
                  groups=np.array([0, 1]), axes=(p.Axis("first"), p.Axis("second"))),
        p.Histogram(key="b", title="Counts", edges=np.array([0.0, 1.0, 2.0]), counts=np.array([3, 5]),
                    axes=(p.Axis("norm", "px"), p.Axis("kernels"))),
        p.Matrix(key="m", title="Matrix", values=grid.astype(np.float64), rows=("r0", "r1"), columns=("a", "b", "c"),
                 view="abs", unit="CKA", axes=(p.Axis("from"), p.Axis("to"))),
        p.Graph(key="g", title="Graph", nodes=("fur", "cat"), edges=((0, 1, 0.5), (1, 0, -2.0))),
        p.Text(key="w", title="Words", text="<b>Careful</b>\nsecond line", tone="warning"),
    )  # fmt: skip


def gold_result() -> Result:
    """What the gold record of this version holds. Once it is released, neither may change: raise SCHEMA_VERSION."""
    return Result(
        analyzer="gradcam", version=3, title="Grad-CAM", summary="One map.", reference="Somebody 2017, eq. 1",
        parameters={"layer": "auto", "samples": 16, "sigma": 0.15, "flag": True, "none": None, "list": [1, 2.5, "x"]},
        models=(ModelRecord(
            spec="xai:photo20", weights_hash="fedcba9876543210", weights="shipped", random_weights=True, runs_code=True,
            layer="stages.3", layer_reason="the last", grid=(13, 14), head="classes (20)", head_reason="by its shape",
            preprocessing="centre crop 224", preprocessing_reason="stated", parameters=712_345,
            capabilities=("forward", "gradients"), notes=("A note.",)),),
        images=(ImageRecord(name="Katze ä.jpg", hash=PICTURE, size=(400, 600), target="tabby", label="cat"),),
        target="class:3 - top1", panels=gold_panels(),
        verdicts=(Verdict(name="finite", value=0.5, threshold=1.0, passed=False, sentence="No.", advice="Look.",
                          picture=PICTURE),
                  Verdict(name="all", value=None, threshold=None, passed=True, sentence="Yes.")),
        cost=Cost(forwards=3, backwards=2, check_forwards=4, check_backwards=1, seconds=0.25, peak_memory=311_000_000),
        provenance=Provenance(command="xai explain cat.jpg", seed=7, device="cpu", precision="float32", threads=2,
                              created="2025-01-01T00:00:00+00:00", versions={"python": "3.11.7", "torch": "2.13.0"}),
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _renewed() -> None:
    """UPDATE_GOLD=1 writes the JSON Schema and the gold record of this version anew."""
    if os.environ.get("UPDATE_GOLD"):
        SCHEMA.write_text(xai.result.dump_json(json_schema()), encoding="utf-8")
        GOLD.mkdir(exist_ok=True)
        gold_result().write(GOLD)


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Equal types, values and arrays, to the bit."""
    assert type(one) is type(two), where
    if isinstance(one, np.ndarray):
        assert one.dtype == two.dtype, where
        assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    elif dataclasses.is_dataclass(one):
        for f in dataclasses.fields(one):
            assert_same(getattr(one, f.name), getattr(two, f.name), f"{where}.{f.name}")
    elif isinstance(one, tuple | list):
        assert len(one) == len(two), where
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{where}.{i}")
    else:
        assert one == two, where


def validator() -> jsonschema.Draft202012Validator:
    """By the schema as it is checked in."""
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the gold record with its JSON changed."""
    shutil.copytree(GOLD, folder)
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    change(record)
    (folder / "result.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def through_a_file(one: Result, folder: Path) -> Result:
    return Result.load(one.save(folder))


def one_panel(panel: p.AnyPanel) -> Result:
    return result((), panels=(panel,), images=(), verdicts=())


def test_the_gold_record_loads_as_what_it_was() -> None:
    loaded = Result.load(GOLD)
    assert {type(panel) for panel in loaded.panels} == set(p.KINDS)
    assert_same(loaded, gold_result())


def test_every_gold_record_has_a_schema_and_can_be_read() -> None:
    found = sorted(GOLD.parent.glob("record-*"))
    assert [folder.name for folder in found] == [f"record-{i}" for i in range(1, SCHEMA_VERSION + 1)]
    for i, folder in enumerate(found, 1):
        schema = json.loads(SCHEMA.with_name(f"result.schema-{i}.json").read_text(encoding="utf-8"))
        jsonschema.validate(json.loads((folder / "result.json").read_text(encoding="utf-8")), schema)
        assert Result.load(folder).schema_version == i


def test_the_gold_record_is_saved_again_to_the_same_bytes(tmp_path: Path) -> None:
    Result.load(GOLD).save(tmp_path / "again")
    gold_result().save(tmp_path / "made")
    for name in ("again", "made"):
        assert (tmp_path / name / "result.json").read_bytes() == (GOLD / "result.json").read_bytes()
        arrays = load_file(tmp_path / name / "arrays.safetensors")
        gold = load_file(GOLD / "arrays.safetensors")
        assert arrays.keys() == gold.keys()
        for key, value in gold.items():
            assert_same(arrays[key], value, key)


def test_no_field_of_a_panel_is_left_at_its_default_in_the_gold_record() -> None:
    """Else a later version could lose it unnoticed."""
    unset = {
        f"{type(panel).__name__}.{f.name}"
        for panel in gold_panels() for f in dataclasses.fields(panel)
        if f.name not in ("kind", "picture", "note") and f.default is not dataclasses.MISSING
        and not isinstance(getattr(panel, f.name), np.ndarray) and getattr(panel, f.name) == f.default
    }  # fmt: skip
    assert unset == {"Picture.axes"}


def test_the_json_schema_that_is_checked_in_is_that_of_the_types() -> None:
    said = f"{SCHEMA.name} is not that of the types; renew it: {RENEW}"
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json_schema(), said


def test_records_follow_the_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    for record in (json.loads((GOLD / "result.json").read_text(encoding="utf-8")), result().record()[0],
                   one_panel(every_kind()[0]).record()[0]):  # fmt: skip
        assert list(validator().iter_errors(json.loads(xai.result.dump_json(record)))) == []


BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "a kind that is none": lambda r: r["panels"][0].update(kind="heat"),
    "the kind of another panel": lambda r: r["panels"][0].update(kind="table"),
    "a missing analyzer": lambda r: r.pop("analyzer"),
    "a missing provenance": lambda r: r.pop("provenance"),
    "a panel without its values": lambda r: r["panels"][2].pop("values"),
    "a word for a number": lambda r: r["cost"].update(forwards="many"),
    "a view that is none": lambda r: r["panels"][2].update(view="upside down"),
    "numbers instead of an array": lambda r: r["panels"][2].update(values=[[1.0]]),
    "a scale of three": lambda r: r["panels"][2].update(scale=[1.0, 2.0, 3.0]),
    "an edge without its weight": lambda r: r["panels"][8]["edges"][0].pop(),
    "panels that are no list": lambda r: r.update(panels={}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_record_that_is_none_is_refused_by_schema_and_loader_alike(what: str, tmp_path: Path) -> None:
    folder = changed(tmp_path / "r", BROKEN[what])
    assert list(validator().iter_errors(json.loads((folder / "result.json").read_text(encoding="utf-8"))))
    with pytest.raises(XaiError, match="must be a complete xai result; got a damaged one: ") as raised:
        Result.load(folder)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300 + len(str(folder))


@pytest.mark.parametrize("drop", [lambda r: r["panels"][9].pop("kind"), lambda r: r.pop("schema_version")])
def test_the_json_schema_wants_kind_and_version(drop: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    folder = changed(tmp_path / "r", drop)
    assert list(validator().iter_errors(json.loads((folder / "result.json").read_text(encoding="utf-8"))))


def test_the_fault_of_a_record_is_named_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(XaiError, match=r"a damaged one: panels\.2\.Heatmap\.view: Input should be 'signed', 'relu'"):
        Result.load(changed(tmp_path / "view", BROKEN["a view that is none"]))
    with pytest.raises(XaiError, match=r"a damaged one: panels\.0 is of no known kind\. Make it again\."):
        Result.load(changed(tmp_path / "kind", BROKEN["a kind that is none"]))


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 999, 0, -1, "1", 1.0, True, None])
def test_another_schema_version_is_refused(version: object, tmp_path: Path) -> None:
    sentence = (f"must be of schema version 1 to {SCHEMA_VERSION}; got {version}. "
                "Read it with the version of xai that wrote it, or a newer one.")
    with pytest.raises(XaiError, match=re.escape(sentence)):
        Result.load(changed(tmp_path / "r", lambda r: r.update(schema_version=version)))
    Run(title="t", command="c", results=()).write(tmp_path)
    run = json.loads((tmp_path / "run.json").read_text()) | {"schema_version": version}
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(XaiError, match=re.escape(sentence)):
        Run.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\x00", '{"schema_version": 1', "[1", b"\xff\xfe"])
def test_what_is_no_json_is_refused(text: str | bytes, tmp_path: Path) -> None:
    for name, load in (("result.json", Result.load), ("run.json", Run.load)):
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(XaiError, match="must be readable JSON; got "):
            load(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "3", "null", '"text"', '{"schema_version": null}'])
def test_json_that_is_no_record_is_refused(text: str, tmp_path: Path) -> None:
    for name, load in (("result.json", Result.load), ("run.json", Run.load)):
        (tmp_path / name).write_text(text)
        with pytest.raises(XaiError, match=f"must be of schema version 1 to {SCHEMA_VERSION}; got "):
            load(tmp_path)


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    for load, name in ((Result.load, "result.json"), (Run.load, "run.json")):
        with pytest.raises(XaiError, match=f"must be one that xai wrote, with a {name}; got .*Name a folder"):
            load(tmp_path / "none")


def test_a_run_that_lacks_its_parts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1, "title": "t"}')
    with pytest.raises(XaiError, match=r"must be that of an xai run; got a damaged one: command: Field required"):
        Run.load(tmp_path)


def test_arrays_that_are_missing_or_no_safetensors_are_refused(tmp_path: Path) -> None:
    for name, damage in (
        ("gone", lambda path: path.unlink()),
        ("empty", lambda path: path.write_bytes(b"")),
        ("cut", lambda path: path.write_bytes(path.read_bytes()[:-5])),
        ("pickle", lambda path: path.write_bytes(b"\x80\x04K\x01." * 9)),
    ):
        folder = changed(tmp_path / name, lambda r: None)
        damage(folder / "arrays.safetensors")
        with pytest.raises(XaiError, match=r"must be a readable safetensors file; got .*Make the result again"):
            Result.load(folder)


@pytest.mark.parametrize("reference", ["panels.9.values", "", "../h", None, ["h"]])
def test_a_reference_to_an_array_that_is_not_there_is_refused(reference: object, tmp_path: Path) -> None:
    folder = changed(tmp_path / "r", lambda r: r["panels"][2]["values"].update(array=reference))
    with pytest.raises(XaiError, match="a damaged one: the array .* is missing, not float32 of shape"):
        Result.load(folder)


@pytest.mark.parametrize("other", [np.zeros((2, 3)), np.zeros((3, 2), np.float32), np.zeros(6, np.float32)])
def test_arrays_of_another_type_or_shape_are_refused(other: np.ndarray, tmp_path: Path) -> None:
    folder = changed(tmp_path / "r", lambda r: None)
    arrays = load_file(folder / "arrays.safetensors")
    assert arrays["panels.2.values"].shape == (2, 3)
    save_file(arrays | {"panels.2.values": other}, folder / "arrays.safetensors")
    with pytest.raises(XaiError, match=rf"the array panels.2.values is {other.dtype} of shape \[.*\], not float32"):
        Result.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan"), np.float64("-inf")])
def test_a_number_that_is_none_is_kept_as_null(value: float, tmp_path: Path) -> None:
    panel = p.Number(key="n", title="t", value=value, low=value, high=1.0)
    back = through_a_file(dataclasses.replace(one_panel(panel), parameters={"x": value}), tmp_path / "r")
    assert (back.panels[0].value, back.panels[0].low, back.panels[0].high) == (None, None, 1.0)  # type: ignore[union-attr]
    assert back.parameters == {"x": None}
    table = p.Table(key="t", title="t", columns=(p.Column("a"),), rows=((value,), (2.5,)))
    assert through_a_file(one_panel(table), tmp_path / "t").panels[0].rows == ((None,), (2.5,))  # type: ignore[union-attr]


def test_arrays_keep_what_is_no_number(tmp_path: Path) -> None:
    values = np.array([[np.nan, np.inf], [-np.inf, -0.0]], np.float32)
    back = through_a_file(one_panel(p.Heatmap(key="h", title="t", values=values)), tmp_path / "r").panels[0]
    assert isinstance(back, p.Heatmap)
    assert back.values.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "panel",
    [
        p.Graph(key="k", title="t", nodes=("a", "b"), edges=((0, 1, float("nan")),)),
        p.Heatmap(key="k", title="t", values=np.zeros((1, 1), np.float32), scale=(0.0, float("inf"))),
        p.Text(key="k", title="t", text="x", tone="loud"),  # type: ignore[arg-type]
        p.Picture(key="k", title="t", pixels=[[1, 2]]),  # type: ignore[arg-type]
    ],
    ids=["edge", "scale", "tone", "list"],
)  # fmt: skip
def test_what_could_not_be_read_again_is_not_written(panel: p.AnyPanel, tmp_path: Path) -> None:
    folder = gold_result().save(tmp_path / "r")
    with pytest.raises(XaiError, match=r"must be made of what a record can hold; got panels\.0\."):
        one_panel(panel).save(folder)
    assert (folder / "result.json").read_bytes() == (GOLD / "result.json").read_bytes()


@pytest.mark.parametrize("name", ["b\udcff.png", "\ud800", "a\udfffb\ud83d"])
def test_a_name_with_a_lone_surrogate_is_written_with_question_marks(name: str, tmp_path: Path) -> None:
    one = result()
    one = dataclasses.replace(one, images=(dataclasses.replace(one.images[0], name=name),), parameters={name: name})
    back = through_a_file(one, tmp_path / "r")
    plain = "".join("?" if "\ud800" <= c <= "\udfff" else c for c in name)
    assert (back.images[0].name, back.parameters) == (plain, {plain: plain})


def test_numpy_numbers_and_paths_become_plain_ones(tmp_path: Path) -> None:
    scalars = (np.int64(3), np.uint8(255), np.float16(0.5), np.bool_(True), np.str_("x"), np.float32(0.1))
    panel = p.Table(key="t", title="t", columns=tuple(p.Column(str(i)) for i in range(6)), rows=(scalars,))
    odd = {"p": Path("a/b"), "k": np.int32(2), "t": (1, np.float64(2))}
    back = through_a_file(dataclasses.replace(one_panel(panel), parameters=odd), tmp_path / "r")
    assert_same(back.panels[0].rows, ((3, 255, 0.5, True, "x", float(np.float32(0.1))),))  # type: ignore[union-attr]
    assert back.parameters == {"p": "a/b", "k": 2, "t": [1, 2.0]}


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "float16", "float64", "uint8", ">i4", "int64", "bool"])
def test_arrays_come_back_with_type_shape_and_values(dtype: str, tmp_path: Path) -> None:
    whole = (np.arange(24).reshape(4, 6) % 5).astype(dtype)
    for name, values in (("whole", whole), ("turned", whole.T), ("cut", whole[::2, 1::3]), ("empty", whole[:0])):
        back = through_a_file(one_panel(p.Heatmap(key="h", title="t", values=values)), tmp_path / name).panels[0]
        assert isinstance(back, p.Heatmap)
        assert_same(back.values, np.array(values, dtype=values.dtype.newbyteorder("=")))


CELL = st.one_of(st.text(max_size=5), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False),
                 st.booleans(), st.none())  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(CELL, CELL), max_size=4))
def test_every_cell_of_a_table_comes_back_with_its_type(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> None:
    panel = p.Table(key="t", title="t", columns=(p.Column("a"), p.Column("b")), rows=tuple(rows))
    back = through_a_file(one_panel(panel), tmp_path_factory.getbasetemp() / "cells").panels[0]
    assert isinstance(back, p.Table)
    assert_same(back.rows, tuple(rows))


def test_a_single_result_reads_as_a_run_of_one() -> None:
    assert Run.load(GOLD) == Run(title="Grad-CAM", command="xai explain cat.jpg", results=(".",))


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    run = Run(title="Maps", command="xai explain a b", results=("0__gradcam", "1__lrp"), interrupted=True,
              failures=(Failure(name="b.png", sentence="It is text."),))  # fmt: skip
    run.write(tmp_path)
    gold_result().write(tmp_path)  # run.json goes before a result beside it
    assert Run.load(tmp_path) == run
