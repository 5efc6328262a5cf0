"""The command line for tests: run inside their own process or as a real one, and what every refusal looks like."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from xai.cli import main
from xai.panels import Heatmap
from xai.result import Result

ROOT = Path(__file__).resolve().parent.parent
XAI = [sys.executable, "-c", "import sys; sys.argv[0] = 'xai'; from xai.cli import main; sys.exit(main())"]
SENTENCE = re.compile(r"xai: .+ must .+; got .+[.?]|xai: .+[.?] See `xai.* --help`\.")
NETS = """
from torch import nn

def cnn():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
"""
NORMAL = "size=32&mean=0.5,0.5,0.5&std=0.5,0.5,0.5"


@dataclass(frozen=True)
class Done:
    """A command that came to its end."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """Where the page lies whose path was printed."""
        page = Path(self.out.strip())
        assert page.name == "index.html", self.out + self.err
        return page.parent


class CommandLine:
    """`xai` in the process of the tests, in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self._monkeypatch, self._capfd = folder, monkeypatch, capfd
        monkeypatch.chdir(folder)

    def __call__(self, *words: str | Path) -> Done:
        """Run `xai WORDS`; nothing may come out that looks like a traceback or like a bug of ours."""
        self._monkeypatch.setattr(sys, "argv", ["xai", *map(str, words)])
        self._capfd.readouterr()
        code = main()
        done = Done(code, *self._capfd.readouterr())
        no_traceback(done.err)
        return done

    def fine(self, *words: str | Path) -> Done:
        """Run what must work and must say nothing on standard error."""
        done = self(*words)
        assert (done.code, done.err) == (0, "")
        return done

    def refused(self, *words: str | Path, names: str) -> str:
        """Run what must be refused: exit code 2, one sentence that names the value, and a folder as it was before."""
        before = snapshot(self.folder)
        done = self(*words)
        assert (done.code, done.out) == (2, ""), done
        assert snapshot(self.folder) == before, "a refused command leaves nothing behind"
        return sentence(done.err, names)


def no_traceback(err: str) -> None:
    """Neither a traceback nor the words for a bug of ours."""
    assert "Traceback" not in err, err
    assert "This is a bug" not in err, err


def sentence(err: str, names: str) -> str:
    """The one line `xai: <what> must be <expected>; got <this>. <what to do>.` with the offending value in it."""
    no_traceback(err)
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    line = err.rstrip("\n")
    assert SENTENCE.fullmatch(line), line
    assert names in line, line
    return line


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden things too: the bytes of each file, None for a folder."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


def unfinished(folder: Path) -> list[str]:
    """Names of parts and of things moved aside that a finished command must not leave."""
    return [path.name for path in folder.rglob("*") if ".part" in path.name or path.suffix == ".old"]


def maps(folder: Path) -> list[np.ndarray]:
    """The raw maps of the result in a folder, in order."""
    return [panel.values for panel in Result.load(folder).panels if isinstance(panel, Heatmap)]


def same_maps(one: Path, other: Path) -> None:
    """Both folders hold the same maps, to the bit."""
    first, second = maps(one), maps(other)
    assert first
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


def process(*words: str, folder: Path, program: list[str] = XAI, **variables: str) -> subprocess.CompletedProcess[str]:
    """`xai WORDS` as a process of its own, its standard streams being pipes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [*program, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
