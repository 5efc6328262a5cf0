"""The page in headless Chromium: no request, no complaint, a slider for the keyboard, maps on their photographs."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reports import page
from reports.pixels import overlay_png
from tests.headless_chromium import BINARY, Page, chromium, opened
from tests.sample_records import every_kind, model_record, result, write_run
from xai import panels as p
from xai.result import Failure

pytestmark = pytest.mark.skipif(BINARY is None, reason="needs chromium")

ATTACK = "<script>window.hacked=1</script><img src=x onerror=window.hacked=2><svg onload=window.hacked=3>"
OPACITY = "getComputedStyle(document.querySelector('.map')).opacity"
AXE = Path(__file__).parent / "node_modules/axe-core/axe.min.js"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for the file."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two pictures, two models, two methods, a failure, an attack in every name, and every kind of panel."""
    models = (model_record(), model_record("file:net.py:make", random_weights=True, runs_code=True, notes=(ATTACK,)))
    results = []
    for model in models:
        for method, title, side, view in (("gradcam", "Grad-CAM", 13, "relu"), ("saliency", "Saliency", 96, "signed")):
            one = result(("chelsea", "rocket"), method, title, side, view, model, summary=ATTACK)
            images = tuple(dataclasses.replace(i, name=f"{i.name}{ATTACK}", target=ATTACK) for i in one.images)
            results.append(dataclasses.replace(one, images=images, panels=(*one.panels, *every_kind())))
    made = write_run(
        tmp_path_factory.mktemp("browser") / "out", results, failures=(Failure(name=ATTACK, sentence=ATTACK),)
    )
    page.write(made)
    return made


@pytest.fixture
def shown(browser: Any, folder: Path) -> Iterator[Page]:
    """The page, open; at the end nothing was complained of and nothing was asked of the network."""
    with opened(browser, folder / "index.html") as tab:
        yield tab
        tab.evaluate("1")
        assert [u for u in tab.requests if not u.startswith("data:image/")] == [
            f"{(folder / 'index.html').as_uri()}"[:80]
        ]
        assert tab.complaints == []


def test_nothing_foreign_runs(shown: Page) -> None:
    """Attacks in names, labels, notes and failures are text."""
    assert shown.evaluate("window.hacked === undefined")
    assert shown.evaluate("document.scripts.length") == 1
    assert shown.evaluate(f"document.body.innerText.includes({ATTACK!r})")


def test_the_slider_works_from_the_keyboard(shown: Page) -> None:
    """Tab reaches it; arrows, Home and End move the opacity of every map, the number and what a screen reader says."""
    shown.evaluate("document.querySelector('input[type=range]').previousElementSibling.scrollIntoView()")
    for _ in range(40):
        shown.press("Tab", 9)
        if shown.evaluate("document.activeElement.type === 'range'"):
            break
    assert shown.evaluate("document.activeElement.type === 'range'")
    assert shown.evaluate(OPACITY) == "0.6"
    for key, code, opacity in (
        ("ArrowRight", 39, "0.61"),
        ("Home", 36, "0"),
        ("End", 35, "1"),
        ("ArrowLeft", 37, "0.99"),
    ):
        shown.press(key, code)
        every = shown.evaluate(
            "[...document.querySelectorAll('.stage .map:not(.alone)')].map(m => getComputedStyle(m).opacity)"
        )
        assert set(every) == {opacity}
        assert len(every) == 8
    assert shown.evaluate("document.querySelector('output').textContent") == "99 %"
    assert shown.evaluate("document.querySelector('input').getAttribute('aria-valuetext')") == "99 percent map"


def test_pictures_decode_with_their_sizes(shown: Page) -> None:
    """Maps: 13 cells magnified ninefold, 96 twofold; photographs: the thumbnail of 320 pixels and the input of 224."""
    maps = shown.evaluate(
        "[...document.querySelectorAll('.map:not(.alone)')].map(m => [m.naturalWidth, m.naturalHeight])"
    )
    assert sorted(map(tuple, maps)) == [(117, 117)] * 4 + [(192, 192)] * 4
    code = """Promise.all([...new Set([...document.querySelectorAll('.specimen .stage .photo')].map(
        e => getComputedStyle(e).backgroundImage.slice(5, -2)))].map(async u => {
            const i = new Image(); i.src = u; await i.decode(); return [i.naturalWidth, i.naturalHeight]}))"""
    assert sorted(map(tuple, shown.evaluate(code))) == [(224, 224), (224, 224), (320, 213), (320, 214)]


@pytest.mark.parametrize("number", [0, 1])
def test_the_overlay_lies_on_its_photograph(shown: Page, folder: Path, number: int) -> None:
    """A screenshot of the overlay, brought to 224 pixels, is the exported overlay, at 60 % and at 100 %."""
    name = sorted(f.name for f in folder.iterdir() if f.is_dir())[number]
    one = page.Result.load(folder / name)
    seen = next(x for x in one.panels if isinstance(x, p.Picture) and x.key == "seen")
    panel = next(x for x in one.panels if isinstance(x, p.Heatmap) and x.picture is not None)
    stage = f"document.querySelectorAll('.specimen .cell .stage')[{number}].getBoundingClientRect()"
    for opacity in (0.6, 1.0):
        shown.evaluate(f"document.querySelector('.xai').style.setProperty('--opacity', {opacity})")
        clip = shown.evaluate(
            f"(r => ({{x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height}}))({stage})"
        )
        image = Image.fromarray(shown.screenshot(clip)).resize((224, 224), Image.Resampling.BILINEAR)
        expected = Image.open(io.BytesIO(overlay_png(panel, seen, opacity)))
        difference = _smooth(image) - _smooth(expected)
        assert np.abs(difference).mean() < 2.0
        shifted = _smooth(image) - np.roll(_smooth(expected), 4, axis=1)
        assert np.abs(shifted).mean() > 2 * np.abs(difference).mean()


def _smooth(image: Image.Image) -> np.ndarray:
    """Colours at a quarter of the size: the place of things without the grain of two scalings."""
    return np.asarray(image.convert("RGB").resize((56, 56), Image.Resampling.BOX)).astype(float)


def test_it_reads_without_javascript(browser: Any, folder: Path) -> None:
    """Without scripts the overlay is drawn at 60 %, the slider and the copy button are not there, the text is."""
    with opened(browser, folder / "index.html", script=False) as tab:
        assert tab.evaluate(OPACITY) == "0.6"
        assert tab.evaluate("document.querySelector('.control').checkVisibility()") is False
        assert tab.evaluate("document.querySelector('.copy').checkVisibility()") is False
        text = tab.evaluate("document.body.innerText").replace("\u00a0", " ")
        for said in ("chelsea class", "71.2 %", "13 × 13 cells", "Random weights.", "xai explain coffee.jpg"):
            assert said in text
        assert tab.complaints == []


CONTRAST = """(() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const f = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
                       return 0.2126 * f(c[0]) + 0.7152 * f(c[1]) + 0.0722 * f(c[2]); };
  const below = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
                       if (c.length < 4 || c[3] > 0) return c; } };
  for (const d of document.querySelectorAll('details')) d.open = true;
  const bad = [];
  for (const e of document.querySelectorAll('.xai *')) {
    if (e.closest('svg.matrix, title, script, style')) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const s = getComputedStyle(e), ink = rgb(e.closest('svg') ? s.fill : s.color);
    const pair = [light(ink), light(below(e))].sort((a, b) => b - a), ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) bad.push(e.tagName + '.' + e.className + ' ' + ratio.toFixed(2) + ' ' + e.textContent.slice(0,
                                                                                                                 30));
  }
  return bad;
})()"""


@pytest.mark.parametrize(("scheme", "paper"), [("light", 240), ("dark", 30)])
def test_light_and_dark_are_legible(shown: Page, scheme: str, paper: int) -> None:
    """The paper follows the colour scheme, and every text has a contrast of at least 4.5 to 1 (WCAG AA)."""
    shown.scheme(scheme)
    colour = shown.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert all(c > paper for c in colour) if scheme == "light" else all(c < paper for c in colour)
    assert shown.evaluate(CONTRAST) == []


@pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: npm install --prefix tests")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_people_out(shown: Page, scheme: str) -> None:
    """Names, roles, headings, landmarks, contrast, by axe-core's rules, with everything unfolded."""
    shown.scheme(scheme)
    shown.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    shown.evaluate(AXE.read_text(encoding="utf-8"))
    found = shown.evaluate("axe.run().then(r => r.violations.map(v => [v.id, v.impact, v.nodes[0].html]))")
    assert found == []
    assert shown.evaluate("axe.run().then(r => r.passes.length)") > 20


@pytest.mark.parametrize("width", [340, 700, 1100, 1900])
def test_no_width_scrolls_sideways(browser: Any, folder: Path, width: int) -> None:
    """From a telephone to a wide screen nothing sticks out, with everything unfolded."""
    with opened(browser, folder / "index.html", width=width) as tab:
        tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_the_copy_button_takes_the_command(shown: Page) -> None:
    """It appears with the script, says that it copied, and leaves the command selected."""
    assert shown.evaluate("document.querySelector('.copy').checkVisibility()")
    shown.evaluate("document.querySelector('.copy').click(), new Promise(r => setTimeout(r, 200))")
    assert shown.evaluate("document.querySelector('.copy').textContent") == "Copied"
    assert shown.evaluate("getSelection().toString()") == "xai explain coffee.jpg --method gradcam"


def test_the_policy_stops_a_request(browser: Any, folder: Path) -> None:
    """Even a script of its own could not load anything from outside."""
    with opened(browser, folder / "index.html") as tab:
        blocked = tab.evaluate("""new Promise(r => {
            addEventListener('securitypolicyviolation', e => r(e.violatedDirective));
            new Image().src = 'https://example.invalid/x.png'; })""")
        assert blocked == "img-src"


def test_it_prints_on_paper(shown: Page) -> None:
    """The PDF has the photographs and maps as images and unfolds the model's card."""
    data = shown.call("Page.printToPDF", printBackground=False)["data"]
    assert len(data) > 100_000
    shown.call("Emulation.setEmulatedMedia", media="print")
    assert shown.evaluate("getComputedStyle(document.querySelector('.control')).display") == "none"
    assert shown.evaluate("getComputedStyle(document.querySelector('.stage .photo')).printColorAdjust") == "exact"
