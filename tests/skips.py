"""`-p tests.skips`: the run fails on a skip whose reason docs/testing.md does not list."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

_PAGE = Path(__file__).parents[1] / "docs" / "testing.md"
_REASON = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)

_unlisted: set[str] = set()


def listed() -> list[str]:
    """The reasons on the page; * stands for anything."""
    return _REASON.findall(_PAGE.read_text())


def reason(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """Why it was skipped; None where it was not."""
    if not report.skipped or hasattr(report, "wasxfail") or not isinstance(report.longrepr, tuple):
        return None
    return str(report.longrepr[2]).removeprefix("Skipped: ")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _look_at(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _look_at(report)


def _look_at(report: pytest.TestReport | pytest.CollectReport) -> None:
    why = reason(report)
    if why is not None and not any(fnmatch(why, pattern) for pattern in listed()):
        _unlisted.add(why)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for why in sorted(_unlisted):
        terminalreporter.write_line(f"FAILED: skipped for a reason that {_PAGE} lacks: {why}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unlisted and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
