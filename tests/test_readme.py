"""The documents agree with the code: their settings, their links and their commands."""

import re
import tomllib
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    folders = {path.name for path in ROOT.glob("[!.]*") if path.is_dir()}
    for name in re.findall(r"`([\w./-]+/[\w./-]*)`", page.read_text()):
        if name.split("/")[0] in folders and "NNNN" not in name:
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_page_of_the_architecture_has_the_layers_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (each["layers"] for each in contracts["contracts"] if each["type"] == "layers")
    checked = [frozenset(layer.split(" | ")) for layer in layers if layer != "__main__"]
    page = (ROOT / "docs" / "architecture.md").read_text()
    (block,) = (
        text for text in re.findall(r"^```\n(.*?)^```$", page, re.M | re.S) if "cli " in text
    )
    drawn = [frozenset(re.split(r"\s{2,}", line)[0].split(", ")) for line in block.splitlines()]
    assert drawn == [*checked, {"schemas"}]
