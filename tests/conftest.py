"""What holds for every test: no network, nobody's caches, and no silent skip where all checks must run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# Before anything imports torch: spinning threads slow each other down on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are the workers'
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["HF_HUB_OFFLINE"] = "1"
# Empty caches, so that no test leans on weights that happen to lie on this machine; subprocesses inherit them.
_CACHES = tempfile.TemporaryDirectory(prefix="xai-tests-")
for _name in ("TORCH_HOME", "HF_HOME"):
    os.environ[_name] = str(Path(_CACHES.name) / _name.lower())

ACCEPTED_SKIPS = ("needs a GPU", "needs ../shared")
_refused: list[tuple[str, str]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--no-skips`, which .ci/run switches on by CI=true."""
    accepted = ", ".join(ACCEPTED_SKIPS)
    parser.addoption(
        "--no-skips",
        action="store_true",
        default=os.environ.get("CI", "").lower() in ("1", "true"),
        help=f"fail when a test is skipped for a reason that does not begin with one of: {accepted} (on where CI=true)",
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note skipped tests."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _note(report.nodeid, report.longrepr)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note files that skip themselves as a whole."""
    if report.skipped:
        _note(report.nodeid, report.longrepr)


def _note(test: str, skip: object) -> None:
    reason = str(skip[2] if isinstance(skip, tuple) else skip).removeprefix("Skipped: ")
    if not reason.startswith(ACCEPTED_SKIPS):
        _refused.append((test, reason))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A refused skip fails a run that would otherwise have passed."""
    if session.config.getoption("--no-skips") and _refused and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the tests whose skip is refused."""
    if config.getoption("--no-skips") and _refused:
        terminalreporter.section("skipped without an accepted reason", red=True, bold=True)
        for test, reason in _refused:
            terminalreporter.line(f"{test}: {reason}")


@pytest.fixture(autouse=True)
def _elsewhere(request: pytest.FixtureRequest) -> None:
    """Doctests run in an empty folder, so that what they write does not land in the checkout."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
