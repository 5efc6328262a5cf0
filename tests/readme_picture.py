"""Make the README's picture of a page: `python tests/readme_picture.py` writes examples/page.png (needs Chromium)."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # as a script, only this folder is on the path

import xai  # noqa: E402  # needs the line above
from tests.headless_chromium import chromium, opened  # noqa: E402

METHODS = ["gradcam", "layercam", "integrated_gradients"]
WIDTH, HEIGHT = 1200, 900

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        folder = Path(scratch) / "page"
        xai.explain("xai:photo20", ["sample:coffee", "sample:rocket"], METHODS, out=folder)
        with opened(browser, folder / "index.html", width=WIDTH, height=HEIGHT) as page:
            shot = page.screenshot({"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT})
    Image.fromarray(shot).save(ROOT / "examples/page.png", optimize=True)
