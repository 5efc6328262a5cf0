"""The documentation says what is: help of every parameter, README's tables and commands, the example scripts."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests import readme_tables
from tests.test_zoo_programs import onnx_file
from xai import catalog

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
XAI = [sys.executable, "-c", "import sys; sys.argv[0] = 'xai'; from xai.cli import main; sys.exit(main())"]
# Commands that need what a test has not, and what is added so that they run without it.
WITHOUT_DOWNLOAD = ["--weights", "random", "--dry-run"]
LABELS = ("Reads", "Yields", "Raises", "Cost", "Reference")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run in a folder as a user who installed the package would."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.parametrize("name", catalog.entries())
def test_an_analyzer_describes_itself(name: str) -> None:
    entry = catalog.entries()[name]
    missing = [label for label in LABELS if not re.search(rf"^{label}\s+\S", entry.docstring, re.MULTILINE)]
    assert not missing, f"the docstring of {entry.class_name} lacks {missing}"
    assert re.search(r"\b(19|20)\d\d\b", readme_tables.reference(entry.docstring)), "a reference has a year"
    assert len(entry.summary) <= 120
    assert entry.summary.endswith(".")
    for field in entry.fields:
        assert len(field.help) > 10, f"{name}.{field.name} has no help"


@pytest.mark.parametrize("name", catalog.entries())
def test_every_parameter_is_shown(name: str) -> None:
    parameters = dataclasses.fields(catalog.find(name))
    assert [field.name for field in catalog.entries()[name].fields] == [parameter.name for parameter in parameters]


def test_the_generated_parts_of_the_readme_are_current() -> None:
    assert readme_tables.renewed(README) == README, "run `make readme`"


@pytest.mark.parametrize("name", catalog.entries())
def test_every_method_has_a_row_in_the_readme(name: str) -> None:
    assert len(re.findall(rf"^\| `{name}` \|", README, re.MULTILINE)) == 1


def blocks(language: str) -> list[str]:
    """The code blocks of the README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command of the README's sh blocks, one line each, without comments."""
    joined = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in joined.splitlines()) if line]


def xai_commands() -> list[str]:
    """Those that call xai; the set-up commands are run by .ci/run and compared by test_packaging.py."""
    return [line for line in commands() if line.startswith("xai ")]


def test_every_command_of_the_readme_is_known() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in commands():
        if line.startswith("make "):
            assert line.split()[1] in targets, line
        elif line.startswith("python "):
            assert (ROOT / line.split()[1]).is_file(), line
        else:
            assert line.startswith(("xai ", "python3 -m venv ", "git clone ", "cd ")), f"no test runs {line!r}"
    assert len(xai_commands()) >= 5


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures that the README's commands name."""
    import skimage.data

    folder = tmp_path_factory.mktemp("desk")
    (folder / "photos").mkdir()
    for path, picture in (("image.png", "chelsea"), ("photos/1.jpg", "coffee"), ("photos/2.jpg", "rocket")):
        Image.fromarray(getattr(skimage.data, picture)()).save(folder / path)
    onnx_file(folder / "net.onnx", "n")
    (folder / "boxes.csv").write_text("file,x0,y0,x1,y1,label\nimage.png,120,20,400,290,cat\n")
    return folder


@pytest.mark.parametrize("line", xai_commands())
def test_a_command_of_the_readme_runs(line: str, desk: Path) -> None:
    words = shlex.split(line)[1:]
    downloads = any(w in ("resnet50", "resnet18") or w.startswith(("torchvision:", "timm:", "hf")) for w in words)
    if downloads and "--weights" not in words:
        words += ["--weights", "random"] if words[0] == "models" else WITHOUT_DOWNLOAD
    if words[0] == "benchmark" and "--data" not in words:
        words.append("--dry-run")
    done = run([*XAI, *words], desk)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
    assert done.stdout.strip()


@pytest.mark.parametrize("code", blocks("python"))
def test_python_of_the_readme_runs(code: str, desk: Path) -> None:
    done = run([sys.executable, "-c", code], desk)
    assert done.returncode == 0, done.stderr


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            assert target.startswith("https://") or (ROOT / target).exists(), f"{document.name}: {target}"


def snapshot() -> list[tuple[str, int]]:
    """The files that an example might write to in the checkout, with the time of their last change."""
    folders = (ROOT / "examples", ROOT / "xai/zoo/weights")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return sorted((str(path), path.stat().st_mtime_ns) for path in files)


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(script: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")] if '"--out"' in script.read_text() else []
    before = snapshot()
    done = run([sys.executable, str(script), "--smoke", *out], tmp_path)
    assert done.returncode == 0, done.stderr
    assert snapshot() == before, "a smoke run writes nothing into the checkout"


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_how_it_is_run(script: Path) -> None:
    assert f"python examples/{script.name}" in script.read_text()
