"""The house keeps its shape: who may import whom and when, how long a file may be. Standard library only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("xai", "analyzers", "filterdb", "reports")

# From the roof down. A file imports only from rows below its own; entries of one row do not see each other, files under
# one entry do. A file that no row names fails the test: enter it where it stands.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("xai.cli*",),
    ("xai.run", "xai.plan"),
    ("xai.ask", "xai.job"),
    ("xai.benchmark",),
    ("analyzers*",),
    ("xai.metric",),
    ("xai.controls", "xai.perturbation", "xai.constructed", "xai.streaming"),
    ("xai.attribution",),
    ("xai.evidence",),
    ("xai.removal", "xai.randomized", "xai.pictures"),
    ("xai.catalog",),
    ("xai.analyzer",),
    ("xai.linear",),
    ("filterdb*", "xai.subject"),
    ("xai.local_fit", "xai.superpixels"),
    ("xai.sampler",),
    ("xai.baselines", "xai.frozen"),
    ("xai.attention",),
    ("xai.reach", "xai.tail", "xai.diagram", "xai.explore*"),
    ("xai.zoo*",),
    ("xai.model",),
    ("xai.batch",),
    ("xai.fast", "xai.resolver", "xai.compiled"),
    ("xai.layouts", "xai.graph", "xai.windows", "xai.drafts"),
    ("xai.layers", "xai.heads", "xai.prototype_head", "xai.torchvision_import", "xai.trace", "xai.segments",
     "xai.steps"),
    ("xai.gates", "xai.tangents"),
    ("xai.rules", "xai.spread"),
    ("xai.outputs", "xai.preprocessing", "xai.planted", "xai.wires", "xai.multiply_adds", "xai.step_words"),
    ("xai.images", "xai.targets"),
    ("xai.image_sources",),
    ("xai.annotations", "xai.scenes", "xai.concept_files", "xai.concept_scenes"),
    ("xai.annotated",),
    ("xai.image_entries",),
    ("xai.image_arrays", "xai.image_files", "xai.outlines", "xai.glyphs"),
    ("xai.similarity",),
    ("xai.seeds", "xai.health", "xai.provenance", "xai.concept_maps", "xai.devices", "xai.modules", "xai.pace",
     "xai.statistics", "xai.spectrum", "xai.shapley", "xai.sobol_indices", "xai.surrogate", "xai.alignment"),
    ("xai.result",),
    ("xai.panels", "xai.circuit"),
    ("xai.errors",),
)
FACE = "xai"  # xai/__init__.py re-exports everything, lazily: no floor of its own
PAGES = "reports"  # a house beside the tower: it sees the record, and the top rooms of the tower see it
PAGES_MAY_IMPORT = ("xai.result", "xai.panels", "xai.circuit", "xai.errors")
MAY_IMPORT_PAGES = ("xai.cli*", "xai.run")
EXEMPT = (("xai.result", "_repr_html_"),)  # a notebook draws the page of a result: the one arrow upwards
# A batch names its model's type, and the evidence those of what it judges: only the type checker follows these arrows.
EXEMPT_TYPES = (("xai.batch", "xai.model"), ("xai.evidence", "xai.attribution"), ("xai.evidence", "xai.analyzer"))

# Import names of the dependencies: those that a file may import at its top, and those that wait for the call.
LIGHT = {
    "jinja2",
    "markupsafe",
    "numpy",
    "PIL",
    "pydantic",
    "pydantic_core",
    "rich",
    "safetensors",
    "torch",
    "typer",
}
HEAVY = {
    "captum", "duckdb", "h5py", "huggingface_hub", "lime", "matplotlib", "onnx", "onnxruntime", "onnxscript", "pandas",
    "plotly", "pyarrow", "ray", "scipy", "shap", "skimage", "sklearn", "timm", "torchvision", "transformers",
}  # fmt: skip
BANNED_WORDS = {"util", "utils", "helper", "helpers", "common", "base", "manager", "managers", "misc"}
FILE_LINES, FUNCTION_LINES = 400, 60


@dataclass(frozen=True)
class Import:
    """One import: the module it names, the line, the functions around it, and whether only type checkers run it."""

    module: str
    line: int
    inside: tuple[str, ...]
    typing_only: bool


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, for every Python file of the packages under `root`."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[Import]:
    """Every import in the file; `from xai import batch` names `xai.batch` where that is a file, else `xai`."""
    yield from _imports(ast.parse(path.read_text()), known, (), False)


def _imports(node: ast.AST, known: dict[str, Path], inside: tuple[str, ...], typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, inside, typing_only)
        elif isinstance(child, ast.ImportFrom):
            origin = "." * child.level + (child.module or "")
            for alias in child.names:
                full = f"{origin}.{alias.name}"
                yield Import(full if full in known else origin, child.lineno, inside, typing_only)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, known, (*inside, getattr(child, "name", "lambda")), typing_only)
        else:
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _imports(child, known, inside, typing_only or checking)


def place(module: str) -> tuple[int, str] | None:
    """Row and entry of FLOORS that hold the module."""
    for row, entries in enumerate(FLOORS):
        for entry in entries:
            if _under(module, entry):
                return row, entry
    return None


def _under(module: str, entry: str) -> bool:
    if not entry.endswith("*"):
        return module == entry
    stem = entry[:-1]
    return module == stem or module.startswith((stem + ".", stem + "_"))


def arrows(root: Path) -> Iterator[tuple[str, Import]]:
    """Imports of one file of the packages by another, without the exempt ones."""
    known = modules(root)
    for name, path in known.items():
        if name == FACE:
            continue
        for found in imports(path, known):
            exempt = any(name == file and function in found.inside for file, function in EXEMPT)
            exempt |= found.typing_only and (name, found.module) in EXEMPT_TYPES
            if not exempt and found.module.split(".")[0] in PACKAGES:
                yield name, found


def unplaced(root: Path) -> list[str]:
    """Files that no row of the table names."""
    return [
        f"{path.relative_to(root)} stands on no floor; enter it in FLOORS"
        for name, path in modules(root).items()
        if name != FACE and not _under(name, PAGES + "*") and place(name) is None
    ]


def upward(root: Path) -> list[str]:
    """Imports that go upwards or sideways in the table, into or out of the pages, or through the face."""
    faults = []
    for name, found in arrows(root):
        where = f"{name}:{found.line} imports {found.module}"
        if found.module == FACE:
            faults.append(f"{where}: name the defining file, the face is for users")
        elif _under(name, PAGES + "*"):
            if not _under(found.module, PAGES + "*") and found.module not in PAGES_MAY_IMPORT:
                faults.append(f"{where}: pages see only {', '.join(PAGES_MAY_IMPORT)}")
        elif _under(found.module, PAGES + "*"):
            if not any(_under(name, entry) for entry in MAY_IMPORT_PAGES):
                faults.append(f"{where}: only {', '.join(MAY_IMPORT_PAGES)} draw pages")
        elif (here := place(name)) and (there := place(found.module)):
            if there[0] < here[0] or (there[0] == here[0] and there[1] != here[1]):
                faults.append(f"{where}: not below it")
        elif place(found.module) is None:
            faults.append(f"{where}: no such file")
    return faults


def circles(root: Path) -> list[str]:
    """One line for each circle of files that import each other."""
    graph: dict[str, set[str]] = {name: set() for name in modules(root)}
    for name, found in arrows(root):
        if found.module in graph and found.module != name:
            graph[name].add(found.module)
    found_circles: dict[frozenset[str], str] = {}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            ring = trail[trail.index(name) :]
            found_circles.setdefault(frozenset(ring), " > ".join((*ring, name)))
        elif name not in done:
            for other in sorted(graph[name]):
                walk(other, (*trail, name))
            done.add(name)

    for name in graph:
        walk(name, ())
    return sorted(found_circles.values())


def analyzers_apart(root: Path) -> list[str]:
    """Analyzers that import another analyzer's file, or a shared `_name.py` of another folder."""
    faults = []
    for name, found in arrows(root):
        parts = found.module.split(".")
        if not name.startswith("analyzers.") or parts[0] != "analyzers" or len(parts) < 3:
            continue
        if not parts[-1].startswith("_") or parts[:-1] != name.split(".")[:-1]:
            faults.append(
                f"{name}:{found.line} imports {found.module}: what two share stands in _name.py of their folder"
            )
    return faults


def heavy_at_the_top(root: Path) -> list[str]:
    """Heavy packages imported at the top of a file, and imports of packages that no dependency brings."""
    known = modules(root)
    faults = []
    for name, path in known.items():
        for found in imports(path, known):
            package = found.module.split(".")[0]
            if package in PACKAGES or package in LIGHT or package in sys.stdlib_module_names:
                continue
            if package == "":
                faults.append(f"{name}:{found.line} imports {found.module}: write the full name")
            elif package not in HEAVY:
                faults.append(f"{name}:{found.line} imports {package}: not a declared dependency")
            elif not found.inside and not found.typing_only:
                faults.append(
                    f"{name}:{found.line} imports {package} at the top: import it in the function that needs it"
                )
            elif _under(name, PAGES + "*") and package == "torch":
                faults.append(f"{name}:{found.line} imports torch: pages are drawn without it")
    return faults


def long(root: Path) -> list[str]:
    """Files and functions over their length; a function counts without its docstring."""
    faults = []
    for path in sources(root):
        text = path.read_text()
        shown = path.relative_to(root)
        if (lines := len(text.splitlines())) > FILE_LINES:
            faults.append(f"{shown}: {lines} lines, at most {FILE_LINES}")
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (size := _length(node)) > FUNCTION_LINES:
                faults.append(f"{shown}:{node.lineno} {node.name}: {size} lines, at most {FUNCTION_LINES}")
    return faults


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    size = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        size -= (first.end_lineno or first.lineno) - first.lineno + 1
    return size


def badly_named(root: Path) -> list[str]:
    """Files whose name says nothing about what is in them."""
    return [
        f"{path.relative_to(root)}: a name that says nothing; name what is in it"
        for path in sources(root, tests=True)
        if BANNED_WORDS & set(path.stem.lower().strip("_").split("_"))
    ]


def shadowed(root: Path) -> list[str]:
    """Files beside a folder of the same name: Python imports only one of the two, and not always the same."""
    return [
        f"{path.relative_to(root)} stands beside the folder {path.stem}/; rename one of them"
        for path in modules(root).values()
        if path.with_suffix("").is_dir()
    ]


def silent(root: Path) -> list[str]:
    """Python files whose first line is not their docstring."""
    faults = []
    for path in sources(root, tests=True):
        if path.suffix != ".py":
            continue
        text = path.read_text()
        if (
            not text.startswith(('"""', 'r"""'))
            or not (ast.get_docstring(ast.parse(text)) or "").split("\n")[0].strip()
        ):
            faults.append(
                f"{path.relative_to(root)}: the first line must be a docstring that says what the file is for"
            )
    return faults


def sources(root: Path, tests: bool = False) -> list[Path]:
    """Every source file of the packages and examples (and tests, on request)."""
    folders = (*PACKAGES, "examples", *(("tests",) if tests else ()))
    suffixes = {".py", ".css", ".js", ".html", ".j2", ".jinja"}
    found = [path for folder in folders for path in sorted((root / folder).rglob("*")) if path.suffix in suffixes]
    return [path for path in found if "gold" not in path.parts and "__pycache__" not in path.parts]


CHECKS: tuple[Callable[[Path], list[str]], ...] = (
    unplaced, upward, circles, analyzers_apart, heavy_at_the_top, long, badly_named, shadowed, silent,
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house(check: Callable[[Path], list[str]]) -> None:
    faults = check(ROOT)
    assert not faults, "\n".join(faults)


DOC = '"""A file."""\n'
BROKEN = {
    unplaced: {"xai/attic.py": DOC},
    upward: {"xai/panels.py": DOC + "def f():\n    from xai.result import Result\n", "xai/result.py": DOC},
    circles: {"reports/a.py": DOC + "import reports.b\n", "reports/b.py": DOC + "from reports import a\n"},
    analyzers_apart: {"analyzers/k/a.py": DOC + "from analyzers.k.b import B\n", "analyzers/k/b.py": DOC},
    heavy_at_the_top: {"xai/images.py": DOC + "try:\n    import timm\nexcept ImportError:\n    raise\n"},
    long: {"xai/images.py": DOC + "def f():\n" + "    x = 1\n" * FUNCTION_LINES},
    shadowed: {"xai/zoo.py": DOC, "xai/zoo/cards/photo20.json": "{}"},
    badly_named: {"analyzers/k/image_utils.py": DOC},
    silent: {"xai/images.py": "import os\n"},
}


@pytest.mark.parametrize("check", BROKEN, ids=lambda check: check.__name__)
def test_each_check_finds_its_fault(check: Callable[[Path], list[str]], tmp_path: Path) -> None:
    for name, text in BROKEN[check].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert len(check(tmp_path)) == 1
    assert not any(other(tmp_path) for other in CHECKS if other is not check)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("xai/model.py", "import reports.page\n", "draw pages"),
        ("reports/page.py", "import xai.model\n", "pages see only"),
        ("xai/model.py", "from xai import explain\n", "the face is for users"),
        ("xai/images.py", "from xai.targets import Target\n", "not below it"),
        (
            "analyzers/k/a.py",
            "from analyzers.k import _b\nfrom analyzers.other import _c\n",
            "_name.py of their folder",
        ),
        ("xai/model.py", "import tensorflow\n", "not a declared dependency"),
    ],
)
def test_further_faults(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    for other in (
        "xai/targets.py",
        "xai/model.py",
        "reports/page.py",
        "analyzers/k/_b.py",
        "analyzers/other/_c.py",
        name,
    ):
        path = tmp_path / other
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(DOC + (text if other == name else ""))
    faults = [fault for check in CHECKS for fault in check(tmp_path)]
    assert len(faults) == 1, faults
    assert sentence in faults[0]


def test_the_exempt_arrow_is_exempt(tmp_path: Path) -> None:
    (tmp_path / "xai").mkdir()
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/page.py").write_text(DOC)
    (tmp_path / "xai/result.py").write_text(DOC + "def _repr_html_():\n    import reports.page\n")
    assert not upward(tmp_path)


def test_every_row_of_the_table_stands() -> None:
    names = modules(ROOT)
    empty = [entry for row in FLOORS for entry in row if not any(_under(name, entry) for name in names)]
    assert not empty, f"FLOORS names what is not there: {empty}"


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter from the root of the checkout."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_no_file_bears_the_name_of_a_function_of_the_face() -> None:
    import xai

    taken = {path.stem for path in (ROOT / "xai").iterdir()} - {"__init__"}
    functions = {
        name for name in xai.__all__ if not isinstance(getattr(xai, name), type) and callable(getattr(xai, name))
    }
    assert functions, "the face exports no function at all"
    assert not functions & taken


def test_pages_are_drawn_without_torch() -> None:
    files = [name for name in modules(ROOT) if _under(name, PAGES + "*")]
    code = "import sys, importlib; sys.modules['torch'] = None; [importlib.import_module(n) for n in sys.argv[1:]]"
    done = run_python(code, *files)
    assert done.returncode == 0, done.stderr


SLOW_TO_IMPORT = (
    "torch",
    "torchvision",
    "timm",
    "captum",
    "matplotlib",
    "plotly",
    "skimage",
    "scipy",
    "pandas",
    "pyarrow",
)


@pytest.mark.parametrize("command", [["--help"], ["methods", "list"], ["explain", "--help"]], ids=" ".join)
def test_help_and_lists_import_no_torch(command: list[str]) -> None:
    code = (
        "import sys\n"
        "from xai.cli import main\n"
        "sys.argv[0] = 'xai'\n"
        "try:\n    code = main()\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        f"print('LOADED', [n for n in {SLOW_TO_IMPORT!r} if n in sys.modules], code or 0)\n"
    )
    done = run_python(code, *command)
    assert "LOADED [] 0" in done.stdout, done.stdout + done.stderr
