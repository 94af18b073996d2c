"""What the README says can be held against the code: its settings, its links, its commands."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from worker.cli.main import app
from worker.cli.settings import markdown

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_settings_are_those_of_the_code() -> None:
    assert markdown() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists(page: Path) -> None:
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    # In code alone: behind a backtick, a prompt, or `run --`.
    for command in re.findall(r"(?:`|\$ |-- )study-ingest ([a-z][a-z-]+)", page.read_text()):
        assert command in known, f"{page.name} names {command}"
