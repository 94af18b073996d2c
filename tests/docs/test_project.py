"""The changelog, the license and the first pages agree with the metadata and with the rules."""

import re
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.version import Version

import study_viewer
import worker
from schemas.words import Pattern, SkipReason, TimeWas

ROOT = Path(__file__).parents[2]


def test_the_changelog_leads_to_the_version() -> None:
    page = (ROOT / "CHANGELOG.md").read_text()
    releases = re.findall(r"^## (\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d$", page, re.MULTILINE)
    newest, version = Version(releases[0]), Version(worker.__version__)
    assert newest < version if "\n## Unreleased\n" in page else newest == version


def test_there_is_one_version() -> None:
    assert metadata("study-ingest")["Version"] == worker.__version__
    assert study_viewer.__version__ == worker.__version__
    for manifest in (ROOT / "deploy" / "kubernetes").glob("*/kustomization.yaml"):
        assert f"newTag: {worker.__version__}\n" in manifest.read_text(), manifest


def test_the_installed_package_names_its_license_and_authors() -> None:
    installed = metadata("study-ingest")
    assert installed["License-Expression"] == "MIT"
    assert installed["Author"] == "the study-ingest authors"
    assert installed.get_all("License-File") == ["LICENSE"]
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_the_pages_that_people_read_first_stay_short(page: str) -> None:
    assert len((ROOT / page).read_text().splitlines()) <= 120


@pytest.mark.parametrize("words", [SkipReason, TimeWas, Pattern])
def test_the_contract_names_every_word_of_the_law(
    words: type[SkipReason | TimeWas | Pattern],
) -> None:
    page = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
    assert {word for word in words if f"`{word}`" not in page} == set()


def test_the_tests_that_the_page_of_tests_names_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "testing.md").read_text()))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert named and not named - there


def test_what_several_locks_pin_has_the_same_hashes_in_all_of_them() -> None:
    """One that was made from a cache knows the files of one Python alone."""
    known: dict[str, dict[str, set[str]]] = {}
    for lock in (
        "requirements.lock",
        "bench/requirements.lock",
        "examples/quiz-app/requirements.txt",
    ):
        for pin in re.split(r"^(?=[a-z])", (ROOT / lock).read_text(), flags=re.MULTILINE):
            hashes = {*re.findall(r"sha256:(\w+)", pin)}
            if hashes:
                known.setdefault(pin.split()[0], {})[lock] = hashes
    shared = {pin: by_lock for pin, by_lock in known.items() if len(by_lock) > 1}
    assert len(shared) > 10
    # An index may have gained a file meanwhile, but never most of them.
    few = {
        (pin, lock)
        for pin, by_lock in shared.items()
        for lock, hashes in by_lock.items()
        if 2 * len(hashes) < max(map(len, by_lock.values()))
    }
    assert few == set()
