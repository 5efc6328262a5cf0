"""The page: complete, self-contained, escaped, honest about bad maps, small, the same bytes each time."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reports import page, table
from reports.album import Album
from reports.draw import draw
from reports.layout import specimens
from reports.pixels import Scale
from reports.ruler import ruler
from tests.sample_records import every_kind, model_record, photograph, result, write_run
from xai import panels as p
from xai.errors import XaiError
from xai.result import Failure, ImageRecord, Result, Run, Verdict

ROOT = Path(__file__).resolve().parent.parent
GOLD = Path(__file__).parent / "gold" / "page_body.html"
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)></style></title>{{1234*5678}}"


class Document(html.parser.HTMLParser):
    """What a page is made of: its elements with attributes, its text, and the content of scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self._inside = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag in self.raw:
            self._inside = tag
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.raw[self._inside][-1] += data
        else:
            self.text += data.replace("\u00a0", " ")

    def attributes(self, name: str) -> list[str]:
        """Every value of an attribute on the page."""
        return [attrs[name] for _, attrs in self.elements if name in attrs]


def drawn(folder: Path, one: Result) -> str:
    """The page of one result."""
    one.save(folder)
    return page.write(folder).read_text(encoding="utf-8")


def data_uris(source: str) -> list[str]:
    """Every embedded picture."""
    return re.findall(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", source)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn folder: two photographs, two models, two methods."""
    names = ("coffee", "rocket")
    results = [
        result(names, method, title, side, view, model)
        for model in (model_record(), model_record("file:net.py:make", random_weights=True, runs_code=True))
        for method, title, side, view in (("gradcam", "Grad-CAM", 13, "relu"), ("saliency", "Saliency", 96, "signed"))
    ]
    folder = write_run(
        tmp_path_factory.mktemp("run") / "out", results, failures=(Failure(name="b.png", sentence="It is text."),)
    )
    page.write(folder)
    return folder


def test_the_page_says_everything_the_record_holds(compared: Path) -> None:
    """Names, predictions, model card, parameters, cost, checks, failures, warnings, the command: all are there."""
    text = " ".join(Document((compared / "index.html").read_text(encoding="utf-8")).text.split())
    for said in (
        "2 pictures", "coffee.jpg", "rocket.jpg", "600 × 400 px", "labelled coffee", "coffee class", "71.2 %",
        "< 0.1 %",
        "Grad-CAM", "Saliency", "13 × 13 cells", "96 × 96 cells", "xai:photo20", "712 345 parameters", "stages.3",
        "the last output with spatial extent that the gradient reaches", "resize 256, centre crop 224",
        "stated by the source",
        model_record().weights_hash, "Random weights. file:net.py:make was never trained", "Code from outside.",
        "1 part of this run could not be done.", "b.png: It is text.", "4 of 16 health checks failed: rocket.jpg.",
        "class-sensitive failed (0.98, threshold 0.9)", "Try a contrast.", "samples", "16", "sigma", "0.15", "250 ms",
        "311 MB",
        "2 forwards, 2 backwards", "Somebody et al. 2017", "xai explain coffee.jpg --method gradcam",
        "cpu, float32, 1 thread",
    ):  # fmt: skip
        assert said in text, said


def test_every_panel_kind_is_drawn(tmp_path: Path) -> None:
    """A result without pictures shows each of its panels, titles, units and notes, in order."""
    kinds = every_kind()
    assert {type(k) for k in kinds} == set(p.KINDS)
    document = Document(drawn(tmp_path / "r", result((), panels=kinds, images=(), verdicts=())))
    where = [document.text.index(k.title) for k in kinds]
    assert where == sorted(where)
    for said in ("−0.812", "A note.", "unit 29", "breaks off", "standard error up to 0.125",
                 "u (cycles/px) to the right",
                 "marked: peak, leaf", "yes", "< 0.1 %"):  # fmt: skip
        assert said in document.text, said
    assert sum(tag == "svg" and "chart" in a.get("class", "") for tag, a in document.elements) == 4
    assert sum(tag == "details" and a.get("class") == "numbers" for tag, a in document.elements) == 5


def _hostile() -> Result:
    base = result(("coffee",))
    marks = (p.Mark("box", ((1, 1), (9, 9)), HOSTILE),)
    loud: list[p.AnyPanel] = []
    for panel in (
        *base.panels,
        *(dataclasses.replace(k, picture=base.images[0].hash) for k in every_kind()),
        *every_kind(),
    ):
        changes: dict[str, object] = {"title": HOSTILE, "note": HOSTILE}
        for name, value in {
            "unit": HOSTILE, "text": HOSTILE, "marks": marks, "columns": (p.Column(HOSTILE), p.Column(HOSTILE,
                                                                                                      HOSTILE)),
            "rows": ((HOSTILE, 0.5), (HOSTILE, None)), "names": (HOSTILE, HOSTILE), "nodes": (HOSTILE,) * 3,
            "labels": (HOSTILE,) * 30, "axes": (p.Axis(HOSTILE, HOSTILE), p.Axis(HOSTILE, HOSTILE)),
        }.items():  # fmt: skip
            if hasattr(panel, name) and not isinstance(panel, p.Matrix):
                changes[name] = value
        if isinstance(panel, p.Matrix):
            changes |= {"rows": (HOSTILE,) * 3, "columns": (HOSTILE,) * 4, "unit": HOSTILE}
        loud.append(dataclasses.replace(panel, **changes))  # type: ignore[arg-type]
    model = dataclasses.replace(
        base.models[0], **dict.fromkeys(("spec", "weights_hash", "weights", "layer", "layer_reason"), HOSTILE),
        **dict.fromkeys(("head", "head_reason", "preprocessing", "preprocessing_reason"), HOSTILE),
        capabilities=(HOSTILE,), notes=(HOSTILE,), random_weights=True, runs_code=True)  # fmt: skip
    return dataclasses.replace(
        base, analyzer=HOSTILE, title=HOSTILE, summary=HOSTILE, reference=HOSTILE, parameters={HOSTILE: HOSTILE,
                                                                                               "b": [HOSTILE],
        "c": {HOSTILE: HOSTILE}}, models=(model,), target=HOSTILE, panels=tuple(loud),
        images=(dataclasses.replace(base.images[0], name=HOSTILE, target=HOSTILE, label=HOSTILE),),
        verdicts=tuple(Verdict(name=HOSTILE, value=1, threshold=1, passed=b, sentence=HOSTILE, advice=HOSTILE,
                               picture=where)
                       for b in (True, False) for where in (None, base.images[0].hash)),
        provenance=dataclasses.replace(base.provenance, command=HOSTILE, device=HOSTILE, precision=HOSTILE,
                                       created=HOSTILE,
                                       versions={HOSTILE: HOSTILE}))  # fmt: skip


def test_whatever_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    """With a hostile string in every text the page has its own script alone, no handler, no foreign address."""
    folder = write_run(tmp_path / "r", [dataclasses.replace(_hostile(), analyzer="gradcam")], title=HOSTILE,
                       command=HOSTILE,
                       failures=(Failure(name=HOSTILE, sentence=HOSTILE),))  # fmt: skip
    for source in (page.write(folder).read_text(encoding="utf-8"), page.fragment(_hostile())):
        document = Document(source)
        assert len(document.raw["script"]) == ("<html" in source)
        assert document.text.count(HOSTILE) > 40
        assert "7006652" not in source
        for tag, attributes in document.elements:
            assert tag not in ("iframe", "object", "embed", "form", "base", "link")
            assert not [
                name for name in attributes if name.startswith("on") or name in ("style", "srcset", "formaction")
            ]
            assert attributes.get("src", "data:image/").startswith("data:image/")
            assert attributes.get("href", "#").startswith(("#", "data:image/png"))


def test_the_policy_allows_exactly_what_the_page_holds(compared: Path) -> None:
    """The Content-Security-Policy names the hashes of the two style sheets and the one script, and forbids the rest."""
    document = Document((compared / "index.html").read_text(encoding="utf-8"))
    policy = next(a["content"] for _, a in document.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}

    def sources(texts: list[str]) -> list[str]:
        return [f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts]

    assert rules == {
        "default-src": ["'none'"], "img-src": ["data:"], "style-src": sources(document.raw["style"]),
        "script-src": sources(document.raw["script"]), "base-uri": ["'none'"], "form-action": ["'none'"],
    }  # fmt: skip
    assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"data:image/[^)\"]*", "", "".join(document.raw["style"])))
    assert "@import" not in "".join(document.raw["style"])


def test_each_picture_is_embedded_once(compared: Path) -> None:
    """Two photographs, seen by two models under two methods each, are four data URIs; the eight maps are eight."""
    source = (compared / "index.html").read_text(encoding="utf-8")
    found = data_uris(source)
    assert len([u for u in found if "jpeg" in u]) == 4
    assert len([u for u in found if "png" in u]) == 8
    assert len({u for u in found if "jpeg" in u}) == 4
    assert "pictures/" not in source


def test_maps_lie_beside_the_page_as_png(compared: Path) -> None:
    """Each result's sub-folder has one palette PNG a picture, of the map's own size."""
    from PIL import Image

    for name, side in (("0__gradcam", 13), ("1__saliency", 96)):
        files = sorted((compared / name / "pictures").iterdir())
        assert len(files) == 2
        for file in files:
            assert re.fullmatch(r"[0-9a-f]{16}-map\.png", file.name)
            with Image.open(file) as image:
                assert (image.mode, image.size) == ("P", (side, side))


def test_the_same_record_gives_the_same_bytes_without_torch(compared: Path) -> None:
    """A second process, in which torch cannot be imported, draws the same page to the byte."""
    before = (compared / "index.html").read_bytes()
    code = "import sys; sys.modules['torch'] = None; from reports import page, table; page.write('.'); table.csv('.')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=compared)
    assert (compared / "index.html").read_bytes() == before


def _natural_noise(seed: int, height: int, width: int) -> np.ndarray:
    """Noise with the falling spectrum of photographs, uint8 (h, w, 3)."""
    r = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(r.standard_normal((height, width, 3)), axes=(0, 1))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    radius[0, 0] = 1
    noise = np.fft.irfft2(spectrum / radius[..., None], s=(height, width), axes=(0, 1))
    return np.clip(128 + 50 * (noise - noise.mean()) / noise.std(), 0, 255).astype(np.uint8)


def test_a_large_comparison_stays_under_12_megabytes(tmp_path: Path) -> None:
    """40 photographs x 3 methods (maps 13, 13 and 224 wide, noise, the worst to compress) x 2 models, own crops."""
    photos = [(_natural_noise(n, 240, 320), _natural_noise(100 + n, 224, 224)) for n in range(40)]
    checks = [f"check {k}" for k in range(6)]
    results = []
    for m in range(2):
        for k, (side, view) in enumerate(((13, "relu"), (13, "relu"), (224, "signed"))):
            found: list[p.AnyPanel] = []
            images = [
                ImageRecord(name=f"{n}.jpg", hash=f"{n:016x}", size=(240, 320), target="a class") for n in range(40)
            ]
            for n, image in enumerate(images):
                r = np.random.default_rng(1000 * m + 100 * k + n)
                values = (r.standard_normal((side, side)) * r.standard_normal((side, side)) ** 2).astype(np.float32)
                found += [
                    p.Picture(key="original", title="o", picture=image.hash, pixels=photos[n][0]),
                    p.Picture(key="seen", title="s", picture=image.hash, pixels=np.roll(photos[n][1], m, axis=1)),
                    p.Heatmap(key="map", title="map", picture=image.hash, values=values, view=view),
                ]  # fmt: skip
            verdicts = tuple(Verdict(name=c, value=0.5, threshold=0.2, passed=True,
                                     sentence="What it means, in a sentence.",
                                     picture=i.hash) for i in images for c in checks)  # fmt: skip
            results.append(result((), f"method{k}", model=model_record(f"model{m}"), panels=tuple(found),
                                  images=tuple(images),
                                  verdicts=verdicts))  # fmt: skip
    written = page.write(write_run(tmp_path / "run", results))
    assert written.stat().st_size < 12_000_000
    assert len(data_uris(written.read_text(encoding="utf-8"))) == 40 + 80 + 240


def test_more_than_100_pictures_go_to_several_pages(tmp_path: Path) -> None:
    """205 pictures: three pages that link to each other, each picture on one, methods and models on the first."""
    r = np.random.default_rng(0)
    images = tuple(ImageRecord(name=f"n{n}.jpg", hash=f"{n:016x}", size=(8, 8)) for n in range(205))
    found = [
        p.Picture(key="seen", title="s", picture=i.hash, pixels=r.integers(0, 255, (8, 8, 3), np.uint8)) for i in images
    ]
    maps = [p.Heatmap(key="map", title="m", picture=i.hash, values=r.random((4, 4), np.float32)) for i in images]
    drawn(tmp_path / "r", result((), panels=(*found, *maps), images=images, verdicts=()))
    files = sorted(f.name for f in (tmp_path / "r").glob("*.html"))
    assert files == ["index-2.html", "index-3.html", "index.html"]
    documents = {f: Document((tmp_path / "r" / f).read_text(encoding="utf-8")) for f in files}
    for number, file in enumerate(("index.html", "index-2.html", "index-3.html")):
        names = {h for h in documents[file].attributes("href") if not h.startswith("#")}
        assert {n.partition("#")[0] for n in names} == set(files) - {file} | ({"index.html"} if number else set())
        own = {f"n{n}.jpg" for n in range(100 * number, min(205, 100 * number + 100))}
        assert set(re.findall(r"n\d+\.jpg", documents[file].text)) == own
        assert ("id", "methods") in [(k, v) for _, a in documents[file].elements for k, v in a.items()] or number > 0


def _bad(values: np.ndarray) -> p.Heatmap:
    return p.Heatmap(
        key="map", title="bad", picture=result().images[0].hash, values=values.astype(np.float32), view="signed"
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((7, 7)), "constant map: every cell is 0"),
        (np.full((7, 7), -2.5), "constant map: every cell is −2.5"),
        (np.full((7, 7), np.nan), "49 cells not finite, drawn grey"),
        (np.array([[1, np.inf], [-np.inf, np.nan]]), "3 cells not finite, drawn grey"),
        (np.array([[3e38, -3e38], [1e-45, 0]]), "signed"),
        (np.ones((1, 1)), "1 × 1 cells"),
        (np.where(np.arange(128 * 128).reshape(128, 128) == 5, 100, 1e-3), "beyond the scale, up to 100"),
    ],
)
def test_bad_maps_are_drawn_and_named(tmp_path: Path, values: np.ndarray, said: str) -> None:
    """Constant, empty and overflowing maps give a page that says so."""
    one = result()
    panels = tuple(_bad(values) if isinstance(panel, p.Heatmap) else panel for panel in one.panels)
    assert said in Document(drawn(tmp_path / "r", dataclasses.replace(one, panels=panels))).text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "numbers",
    [[], [np.nan] * 3, [np.inf, 1, 2], [1e308, -1e308, 0], [5, 5, 5], [1e-320, 0, 1e-321]],
    ids=["empty", "missing", "infinite", "huge", "equal", "tiny"],
)
def test_no_number_breaks_a_drawing(numbers: list[float]) -> None:
    """Every kind that holds numbers draws awkward ones too, without a warning."""
    v = np.array(numbers, np.float64)
    edges = np.append(v, 6.0)
    shapes: list[p.AnyPanel] = [
        p.Curve(key="k", title="t", x=v, y=np.stack([v, v]), names=("a", "b"), low=np.stack([v, v]), high=np.stack([v,
                                                                                                                    v])),
        p.Scatter(key="k", title="t", xy=np.stack([v, v], axis=1)),
        p.Histogram(key="k", title="t", edges=edges, counts=v),
        p.Matrix(key="k", title="t", values=v[None], rows=("a",), columns=("a", "b", "c")),
        p.Heatmap(key="k", title="t", values=v[None], error=v[None]),
        p.Heatmap(key="k", title="t", values=v[None], view="relu", scale=(0.0, 0.0)),
        p.Table(key="k", title="t", columns=(p.Column("a", "probability"),), rows=tuple((float(n),) for n in v)),
        p.Number(key="k", title="t", value=numbers[0] if numbers else None, low=-1.0,
                 high=numbers[0] if numbers else None),
    ]  # fmt: skip
    for panel in shapes:
        assert "<figure" in draw(panel, Album())


@pytest.mark.parametrize(("rows", "columns", "turn"), [(6, 8, -45), (20, 50, -90), (70, 70, -90)])
def test_a_matrix_names_every_row_and_column_and_no_two_names_touch(rows: int, columns: int, turn: int) -> None:
    names = tuple(f"layer{i}.conv{i}" for i in range(max(rows, columns)))
    panel = p.Matrix(key="k", title="t", values=np.eye(rows, columns), rows=names[:rows], columns=names[:columns])
    drawn = str(draw(panel, Album()))
    tops = [float(y) for y in re.findall(r'<text class="tick end" x="\S+" y="(\S+)">', drawn)]
    places = re.findall(r'<text class="tick" transform="translate\((\S+) \S+\) rotate\((\S+)\)">', drawn)
    assert (len(tops), len(places)) == (rows, columns)
    assert {float(angle) for _, angle in places} == {turn}
    assert np.diff(tops).min() >= 13.9  # names are 12 px high
    assert np.diff([float(x) for x, _ in places]).min() * abs(np.sin(np.radians(turn))) >= 12
    for name in (*names[:rows], *names[:columns]):
        assert f">{name}</text>" in drawn


def test_the_fragment_is_scoped_and_complete() -> None:
    """In a notebook: no script, every rule under .xai, the same words as on the page, and what _repr_html_ returns."""
    one = result(("chelsea",))
    source = page.fragment(one)
    assert source == one._repr_html_()
    document = Document(source)
    assert "<script" not in source
    assert not document.attributes("id") or all(not i.startswith("xai") for i in document.attributes("id"))
    sheet = re.sub(r"base64,[A-Za-z0-9+/=]+", "", document.raw["style"][0])
    rules = re.sub(r"/\*.*?\*/|@media[^{]*\{", "", sheet, flags=re.DOTALL)
    for selectors in re.findall(r"([^{}]+)\{", rules):
        for selector in re.split(r",(?![^(]*\))", selectors):
            assert ".xai" in selector, selector
    for said in (
        "chelsea.jpg",
        "chelsea class",
        "Grad-CAM",
        "13 × 13 cells",
        "One map a picture.",
        "xai explain chelsea",
    ):
        assert said in document.text


@pytest.mark.parametrize("name", ["../other", "/etc", "a/../../b"])
def test_a_record_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    """run.json may name sub-folders of its own folder alone."""
    folder = write_run(tmp_path / "r", [result()])
    dataclasses.replace(Run.load(folder), results=(name,)).write(folder)
    for read in (page.write, table.csv):
        with pytest.raises(XaiError, match="must be sub-folders of it"):
            read(folder)


def test_a_name_with_stray_bytes_is_drawn(tmp_path: Path) -> None:
    """A file name that is no UTF-8 neither breaks the record nor the page."""
    one = result()
    images = (dataclasses.replace(one.images[0], name="b\udcff.png"),)
    assert "b?.png" in drawn(tmp_path / "r", dataclasses.replace(one, images=images))
    assert "b?.png" in page.fragment(dataclasses.replace(one, images=images))


def test_the_body_is_as_agreed(tmp_path: Path) -> None:
    """The HTML of a small page equals the gold file, embedded bytes scrubbed; UPDATE_GOLD=1 writes it anew."""
    source = drawn(tmp_path / "r", result(("rocket",), panels=(*result(("rocket",)).panels, *every_kind()[:2])))
    source = re.sub(r"<(style|script)>.*?</\1>", r"<\1></\1>", source, flags=re.DOTALL)
    source = re.sub(r"base64,[A-Za-z0-9+/=]+|sha256-[A-Za-z0-9+/=]+|\bp-[0-9a-f]{16}", "SCRUBBED", source)
    if os.environ.get("UPDATE_GOLD"):
        GOLD.parent.mkdir(exist_ok=True)
        GOLD.write_text(source, encoding="utf-8")
    assert source == GOLD.read_text(encoding="utf-8")


def test_photographs_are_not_altered_by_their_number() -> None:
    """The samples are real photographs, so that sizes above mean something."""
    assert photograph("coffee").shape == (400, 600, 3)
    assert photograph("coffee").std() > 40


def test_the_same_method_stands_in_the_same_column_for_every_model(tmp_path: Path) -> None:
    other = model_record("torchvision:resnet18")
    results = [result(("rocket",)), result(("rocket",), "lrp", "LRP"), result(("rocket",), "lrp", "LRP", model=other)]
    first, second = specimens(results)[0].rows
    whole = specimens(results)[0]
    assert [cell and cell.method for cell in whole.slots(first)] == ["Grad-CAM", "LRP"]
    assert [cell and cell.method for cell in whole.slots(second)] == [None, "LRP"]

    made = write_run(tmp_path / "out", results)
    page.write(made)
    source = (made / "index.html").read_text()
    assert source.count('class="plates n3"') == 2
    assert source.count("not available: see the top of the page") == 1


@pytest.mark.parametrize(("high", "middle"), [(0.5, True), (4.26e-5, False)])
def test_a_scale_with_long_numbers_goes_without_its_middle(high: float, middle: bool) -> None:
    drawn = str(ruler(Scale(-high, high, "diverging", beyond=1)))
    assert ("<span>0</span>" in drawn) == middle
    assert "≥" in drawn
