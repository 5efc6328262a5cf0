"""What is shipped and how it installs: ranges, pins, the wheel's content, the editable install, the set-up commands."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("xai", "analyzers", "filterdb", "reports")
# What only one build of torch brings: torch names the versions itself.
BUILD_SPECIFIC = re.compile(r"nvidia-|cuda-|triton|pytorch-triton|setuptools$")


def project() -> dict[str, object]:
    """The [project] table."""
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


def requirements() -> list[Requirement]:
    """The dependencies, and those of every extra."""
    table = project()
    extras = table["optional-dependencies"]
    dependencies = table["dependencies"]
    assert isinstance(extras, dict)
    assert isinstance(dependencies, list)
    return [Requirement(line) for line in [*dependencies, *(line for extra in extras.values() for line in extra)]]


def pins() -> dict[str, Version]:
    """Name -> version of constraints.txt, without the lines for other platforms."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            if requirement.marker is None or requirement.marker.evaluate():
                found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def test_every_requirement_is_pinned_within_its_range() -> None:
    pinned = pins()
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{requirement} has no pin in constraints.txt"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} against the pin {pinned[name]}"


def test_no_pin_belongs_to_one_build_of_torch() -> None:
    for name, version in pins().items():
        assert not re.match(r"nvidia|cuda|triton", name)
        assert version.local is None, f"{name}=={version}: a local version fits one build only"


def installed_closure() -> dict[str, Version]:
    """Everything that is installed here because a requirement, or one of its requirements, asks for it."""
    found: dict[str, Version] = {}
    waiting = [(requirement.name, frozenset(requirement.extras)) for requirement in requirements()]
    while waiting:
        name, extras = waiting.pop()
        key = canonicalize_name(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        if key in found and not extras:
            continue
        found[key] = Version(distribution.version)
        for line in distribution.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in (extras or {""})):
                waiting.append((needed.name, frozenset(needed.extras)))
    return found


def test_the_pins_are_complete() -> None:
    installed = installed_closure()
    assert {"torch", "numpy", "sympy"} <= installed.keys()
    unpinned = {name for name in installed.keys() - pins().keys() if not BUILD_SPECIFIC.match(name)}
    assert not unpinned, f"installed through a requirement, but not in constraints.txt: {sorted(unpinned)}"


def test_what_ci_installs_are_the_pins() -> None:
    if not os.environ.get("CI"):
        assert pins()["torch"] == Version("2.13.0")
        return
    pinned = pins()
    for name, version in installed_closure().items():
        if name in pinned:
            assert version.public == pinned[name].public, f"{name} {version} is installed, {pinned[name]} is pinned"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a build reads, in a folder of their own, so that the checkout gets no build folders."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / name)
    leave = shutil.ignore_patterns("__pycache__", "node_modules")
    for name in (*PACKAGES, "tests", "examples"):
        shutil.copytree(ROOT / name, root / name, ignore=leave)
    return root


def build(copy: Path, kind: str, out: Path) -> Path:
    """Build with the setuptools that is installed here; `kind` is "wheel" or "editable"."""
    out.mkdir()
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=copy, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(copy: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build(copy, "wheel", tmp_path / "wheel")) as wheel:
        shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        scripts = next(wheel.read(n).decode() for n in wheel.namelist() if n.endswith("/entry_points.txt"))
    files = {str(path.relative_to(copy)) for name in PACKAGES for path in (copy / name).rglob("*") if path.is_file()}
    assert shipped == files
    assert {f"{name}/py.typed" for name in PACKAGES} <= shipped
    assert "Name: xai-toolkit" in metadata
    assert "xai = xai.cli:main" in scripts


@pytest.mark.parametrize("regular", [False, True], ids=["plain folder", "folder with __init__"])
def test_an_editable_install_survives_a_folder_called_reports(copy: Path, tmp_path: Path, regular: bool) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    with zipfile.ZipFile(build(copy, "editable", tmp_path / "editable")) as wheel:
        wheel.extractall(site)
    (elsewhere / "reports").mkdir(parents=True)
    if regular:
        (elsewhere / "reports/__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    code = "import importlib.util as u; print(u.find_spec('reports').origin, u.find_spec('xai').origin)"
    start = f"import site; site.addsitedir({str(site)!r}); "
    # A script's path begins with the script's folder, python -c's with the working directory: only the plain folder can
    # stand there unnoticed, a regular package of the same name wins by the rules of the language.
    flags = ["-S", "-P"] if regular else ["-S"]
    done = subprocess.run(
        [sys.executable, *flags, "-c", start + code],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == [str(copy / "reports/__init__.py"), str(copy / "xai/__init__.py")], done.stderr


SET_UP = {
    "first": "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e . "
    "&& .venv/bin/xai explain sample:coffee --method gradcam",
    "second": 'python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e ".[test,hf,onnx,ray]" '
    "&& .venv/bin/python -m pytest",
}


def test_readme_makefile_and_ci_run_the_same_set_up() -> None:
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text().replace("$(PYTHON)", "python3")
    for name, command in SET_UP.items():
        assert f"\n{command}\n" in readme, f"README.md lacks the {name} set-up command"
        assert f"\t{command}\n" in makefile, f"Makefile lacks the {name} set-up command"
    assert f"    {SET_UP['second']}\n" in (ROOT / ".ci/run").read_text()


def test_one_version_everywhere() -> None:
    version = project()["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version} (" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("body", "option", "code"),
    [
        ("import pytest\ndef test_a(): pytest.skip('needs a GPU')\n", "--no-skips", 0),
        ("import pytest\ndef test_a(): pytest.skip('no mood')\n", "--no-skips", 1),
        ("import pytest\ndef test_a(): pytest.skip('no mood')\n", "-q", 0),
        ("import pytest\npytest.importorskip('no_such_package')\ndef test_a(): pass\n", "--no-skips", 1),
    ],
    ids=["accepted", "refused", "refused only on request", "a whole file"],
)
def test_a_skip_fails_where_all_checks_must_run(body: str, option: str, code: int, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_one.py").write_text(body + "def test_passes(): pass\n" * ("importorskip" not in body))
    (tmp_path / "test_two.py").write_text("def test_passes(): pass\n")
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", option],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ("skipped without an accepted reason" in done.stdout) == bool(code)
    assert ("test_one.py" in done.stdout.partition("accepted reason")[2]) == bool(code)
