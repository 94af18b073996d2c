"""The project's own papers agree with its metadata."""

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_newest_release_in_the_changelog_is_the_version_of_the_package() -> None:
    releases = re.findall(
        r"^## (\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert releases[0] == project["version"]


def test_the_installed_package_names_its_license_and_authors() -> None:
    installed = metadata("study-ingest")
    assert installed["License-Expression"] == "MIT"
    assert installed["Author"] == "the study-ingest authors"
    assert installed.get_all("License-File") == ["LICENSE"]
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
