"""The documents agree with the code: their settings, their links and their commands."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from worker.cli.main import app
from worker.cli.settings import markdown
from worker.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "bench" / "JOURNAL.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def test_the_page_of_settings_is_current() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == markdown()


def test_every_setting_is_in_a_group_and_has_a_description() -> None:
    grouped = [name for group in Settings.groups() for name in group.model_fields]
    assert sorted(grouped) == sorted(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        description = field.description or ""
        assert description[:1].isupper() and description.endswith("."), name


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
