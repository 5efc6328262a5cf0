"""The catalog of analyzers, settings on their way to them, jobs and their ids, near names, derived seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from xai import catalog, seeds
from xai.analyzer import Analyzer
from xai.errors import XaiError, did_you_mean, error, near
from xai.job import CHUNK, Job, chunks, run_id

ROOT = Path(__file__).resolve().parent.parent


# The catalog


def python(code: str, *path: Path) -> Any:
    """What the code prints as JSON, in a fresh interpreter with more folders on its path."""
    start = f"import sys; sys.path[:0] = {[str(ROOT), *map(str, path)]!r}\n"
    done = subprocess.run([sys.executable, "-P", "-c", start + code], capture_output=True, text=True, timeout=120,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_catalog_is_read_and_nothing_of_it_imported() -> None:
    found = python(
        "import json; from xai import catalog\n"
        "names = sorted(catalog.entries())\n"
        "heavy = [m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'torchvision', 'captum')]\n"
        "print(json.dumps([names, heavy, [m for m in sys.modules if m.startswith('analyzers')]]))"
    )
    files = sorted(path.stem for path in (ROOT / "analyzers").glob("*/[!_]*.py"))
    assert found == [files, [], []]


def test_only_the_analyzer_that_is_asked_for_is_imported() -> None:
    loaded = python(
        "import json; from xai import catalog\n"
        "assert catalog.find('gradcam').__name__ == 'GradCAM'\n"
        "print(json.dumps([m for m in sys.modules if m.startswith('analyzers.') and '._' not in m]))"
    )
    assert sorted(loaded) == ["analyzers.attribution", "analyzers.attribution.gradcam"]


@pytest.mark.parametrize("name", sorted(catalog.entries()))
def test_what_is_read_of_a_file_is_what_its_class_says(name: str) -> None:
    entry, found = catalog.entry(name), catalog.find(name)
    assert (entry.name, entry.module, entry.class_name) == (found.name(), found.__module__, found.__name__)
    assert set(entry.needs) == set(found.needs)
    fields = dataclasses.fields(found)
    assert [f.name for f in entry.fields] == [f.name for f in fields]
    assert [f.help for f in entry.fields] == [f.metadata["help"] for f in fields]
    assert entry.summary == (found.__doc__ or "").splitlines()[0]


def test_an_unknown_method_is_told_with_near_names() -> None:
    with pytest.raises(XaiError, match=r"got 'grad-cam'\. Did you mean gradcam"):
        catalog.entry("grad-cam")
    with pytest.raises(XaiError, match=r"got 'zzzzzz'\. Run `xai methods list`\."):
        catalog.find("zzzzzz")


ANALYZER = '''
"""An analyzer from elsewhere."""
from dataclasses import dataclass
from xai.analyzer import Analyzer, param
from xai.panels import Number

@dataclass(frozen=True)
class Weigh(Analyzer):
    """Weigh: a number."""
    grams: float = param(1.0, "how heavy")
    count: int = param(3, "how many")
    loud: bool = param(False, "how said")

    def run(self, subject):
        yield Number(key="n", title="Weight", value=self.grams * self.count)
'''


def package(folder: Path, name: str, point: str, source: str = ANALYZER) -> Path:
    """A package as pip would have installed it into `folder`, with one entry point for xai."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[xai.analyzers]\n{point} = {name}:Weigh\n")
    return folder


def test_a_third_party_registers_an_analyzer_by_an_entry_point(tmp_path: Path) -> None:
    """Listed without being imported, then found, set and run through the same door; plain annotations are as good."""
    site = package(tmp_path / "site", "weigh", "weigh")
    found = python(
        "import json; from xai import catalog\n"
        "entry = catalog.entries()['weigh']\n"
        "before = 'weigh' in sys.modules\n"
        "made, = catalog.make(['weigh'], {'grams': '2.5', 'weigh.count': '4', 'loud': 'true'})\n"
        "from xai.subject import Subject\n"
        "result = made(Subject())\n"
        "print(json.dumps([entry.kind, entry.summary, before, made.parameters(), result.analyzer,\n"
        "                  result.panels[0].value]))",
        site,
    )
    settings = {"grams": 2.5, "count": 4, "loud": True}
    assert found == ["other", "from weigh", False, settings, "weigh", 10.0]


@pytest.mark.parametrize("both", [("gradcam",), ("weigh", "weigh")], ids=["one of ours", "two of theirs"])
def test_two_analyzers_of_one_name_are_told(both: tuple[str, ...], tmp_path: Path) -> None:
    for i, point in enumerate(both):
        package(tmp_path / "site", f"their{i}", point)
    said = python(
        "import json; from xai import catalog; from xai.errors import XaiError\n"
        "try: print(json.dumps(len(catalog.entries())))\n"
        "except XaiError as problem: print(json.dumps(str(problem)))",
        tmp_path / "site",
    )
    assert said.startswith(f"the analyzer {both[-1]} must be of a name of its own; got one more from their")
    assert said.endswith("Uninstall the package that brings it, or ask its author to rename it.")


def test_a_file_without_an_analyzer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "attribution").mkdir()
    (tmp_path / "attribution" / "empty.py").write_text('"""Nothing."""\nx = 1\n')
    monkeypatch.setattr(catalog, "FOLDER", tmp_path)
    catalog._own.cache_clear()
    try:
        with pytest.raises(XaiError, match="the file empty.py must be one that holds an analyzer class; got none"):
            catalog.entries()
    finally:
        catalog._own.cache_clear()


# Settings


def parameters(methods: list[str], settings: dict[str, str]) -> list[dict[str, Any]]:
    made: list[Analyzer] = catalog.make(methods, settings)
    assert [a.name() for a in made] == list(dict.fromkeys(methods))
    return [a.parameters() for a in made]


def test_a_key_with_its_method_goes_to_that_method_alone() -> None:
    cam, smooth = parameters(["gradcam", "smoothgrad"], {"smoothgrad.samples": "7", "gradcam.layer": "a.b"})
    plain_cam, plain_smooth = parameters(["gradcam", "smoothgrad"], {})
    assert cam == plain_cam | {"layer": "a.b"}
    assert smooth == plain_smooth | {"samples": 7}


def test_a_bare_key_goes_to_every_method_that_has_it() -> None:
    one, two, three = parameters(["gradcam", "hirescam", "saliency"], {"layer": "stages.1"})
    assert (one["layer"], two["layer"]) == ("stages.1", "stages.1")
    assert "layer" not in three


def test_a_key_with_its_method_and_a_bare_one_may_stand_together() -> None:
    one, two = parameters(["gradcam", "hirescam"], {"layer": "a", "hirescam.layer": "b"})
    assert (one["layer"], two["layer"]) == ("a", "b")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sample": "7"}, r"a setting must be one of .*smoothgrad.samples.*; got sample=7\. Did you mean"),
        ({"gradcam.samples": "7"}, r"a setting must be one of .*; got gradcam.samples=7"),
        ({"lrp.rule": "7"}, r"a setting must be for a requested method \(gradcam, smoothgrad\); got lrp.rule=7"),
        ({"smooth.samples": "7"}, r"got smooth.samples=7\. Did you mean smoothgrad\?"),
        ({"zzz": "7"}, r"got zzz=7\. `xai methods info NAME` lists them\."),
        ({"samples": "many"}, r"smoothgrad.samples must be of type int; got 'many'\. It is "),
        ({"samples": "2.5"}, r"smoothgrad.samples must be of type int; got '2.5'"),
        ({"samples": "0"}, r"smoothgrad.samples must be at least 1"),
    ],
)  # fmt: skip
def test_a_setting_that_fits_nothing_is_told(settings: dict[str, str], said: str) -> None:
    with pytest.raises(XaiError, match=said):
        catalog.make(["gradcam", "smoothgrad"], settings)


def test_text_becomes_a_value_of_the_fields_type() -> None:
    @dataclasses.dataclass(frozen=True)
    class Every:
        flag: bool = False
        maybe: int | None = None
        share: float = 0.0
        word: str = ""

    fields = {f.name: f for f in dataclasses.fields(Every)}
    for name, text, expected in (
        ("flag", "true", True), ("flag", "False", False), ("flag", "1", True), ("flag", "no", False),
        ("maybe", "none", None), ("maybe", "null", None), ("maybe", "3", 3), ("share", "1e-3", 0.001),
        ("share", "2", 2.0), ("word", "none", "none"), ("word", "2", "2"),
    ):  # fmt: skip
        value = catalog._value(text, fields[name], name)
        assert (value, type(value)) == (expected, type(expected)), (name, text)
    for name, text in (("flag", "perhaps"), ("maybe", "x"), ("share", "x")):
        with pytest.raises(XaiError, match=f"{name} must be of type .*; got '{text}'"):
            catalog._value(text, fields[name], name)


# Jobs


JOB = Job(spec="xai:photo20", weights_hash="0123456789abcdef", pictures=("aa", "bb"), geometry="short side 224",
          method="gradcam", version=1, parameters={"layer": "auto", "x": 0.5}, schema=1)  # fmt: skip
CHANGES = {
    "spec": "xai:tinyvgg", "weights_hash": "f" * 16, "pictures": ("bb", "aa"), "geometry": "short side 225",
    "method": "hirescam", "version": 2, "parameters": {"layer": "auto", "x": 0.25}, "target": "label", "seed": 1,
    "chunk": "8", "threads": "1", "precision": "float64", "schema": 2,
}  # fmt: skip


def test_the_id_of_a_job_is_the_same_everywhere_and_for_ever() -> None:
    """A study finds its finished jobs by it: when this fails, every study starts anew."""
    assert JOB.id == "787f69772b93f575"
    text = json.dumps(dataclasses.asdict(JOB), sort_keys=True)
    assert JOB.id == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert dataclasses.replace(JOB, parameters={"x": 0.5, "layer": "auto"}).id == JOB.id
    assert run_id([JOB]) == "059fd960"


def test_every_field_of_a_job_changes_its_id() -> None:
    assert set(CHANGES) == {f.name for f in dataclasses.fields(Job)}
    ids = {dataclasses.replace(JOB, **{name: value}).id for name, value in CHANGES.items()}  # type: ignore[arg-type]
    assert len(ids | {JOB.id}) == len(CHANGES) + 1


names = st.lists(st.text("0123456789abcdef", min_size=1, max_size=4), max_size=200)


@given(names)
def test_chunks_hold_the_list_in_order_and_at_most_32_each(pictures: list[str]) -> None:
    pieces = list(chunks(pictures))
    assert [p for piece in pieces for p in piece] == pictures
    assert all(len(piece) == CHUNK == 32 for piece in pieces[:-1])
    assert not pieces or 1 <= len(pieces[-1]) <= 32


@given(names, names)
def test_a_longer_list_keeps_its_full_chunks(pictures: list[str], more: list[str]) -> None:
    old, new = list(chunks(pictures)), list(chunks(pictures + more))
    full = [piece for piece in old if len(piece) == CHUNK]
    assert new[: len(full)] == full
    assert len(new) >= len(old)


@given(st.permutations(range(6)))
def test_the_id_of_a_run_does_not_depend_on_the_order_of_its_jobs(order: list[int]) -> None:
    jobs = [dataclasses.replace(JOB, seed=i) for i in range(6)]
    assert run_id([jobs[i] for i in order]) == run_id(jobs)
    assert run_id(jobs[:5]) != run_id(jobs)
    assert len(run_id([])) == 8


# Sentences and near names


@pytest.mark.parametrize(
    ("name", "found"),
    [("resnet5", ["resnet50", "ResNet18"]), ("RESNET50", ["resnet50", "ResNet18"]), ("net", ["resnet50", "ResNet18"]),
     ("vgg", ["vgg16"]), ("qqqqqq", [])],
)  # fmt: skip
def test_near_names_are_found_whatever_their_case(name: str, found: list[str]) -> None:
    known = ["vgg16", "resnet50", "ResNet18"]
    assert near(name, known) == found
    assert did_you_mean(name, known) == (f"Did you mean {', '.join(found)}?" if found else "")


@given(st.text(max_size=8), st.lists(st.text(max_size=8), max_size=12), st.integers(1, 4))
def test_near_names_are_known_ones_and_few(name: str, known: list[str], count: int) -> None:
    found = near(name, known, count)
    assert len(found) <= count
    assert set(found) <= set(known)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(("do", "end"), [("Name one", "Name one."), ("Name one.", "Name one."),
                                         ("Did you mean a?", "Did you mean a?")])  # fmt: skip
def test_an_error_is_one_sentence_and_what_to_do(do: str, end: str) -> None:
    assert str(error("the seed", "a whole number", -1, do)) == f"the seed must be a whole number; got -1. {end}"


# Seeds


def test_a_derived_seed_is_the_same_everywhere_and_for_ever() -> None:
    """Every map of a method that draws depends on it."""
    assert seeds.derive(0) == 3456079177858693020
    assert seeds.derive(0, "0123456789abcdef", "smoothgrad") == 5056931377771016975
    assert seeds.derive(7, "ä") == 4131265359089035595
    assert_close(torch.rand(3, generator=seeds.generator(0, "a")), torch.tensor([0.3776588, 0.1367127, 0.9130077]))


@given(st.integers(0, 2**40), st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=3))
def test_a_derived_seed_fits_torch_and_depends_on_every_part(seed: int, parts: list[str]) -> None:
    value = seeds.derive(seed, *parts)
    assert 0 <= value < 2**63
    assert value == seeds.derive(seed, *parts)
    others = {seeds.derive(seed + 1, *parts), seeds.derive(seed, *parts, "x"), seeds.derive(seed, "x", *parts)}
    assert value not in others
    torch.Generator().manual_seed(value)


def test_the_parts_of_a_seed_do_not_run_together() -> None:
    several = (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"))
    assert len({seeds.derive(0, *parts) for parts in several}) == 5
    assert seeds.derive(1, "2") != seeds.derive(12)
