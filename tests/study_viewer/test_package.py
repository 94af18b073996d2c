"""The viewers' wheel: what is in it, and that it stands without the worker and its libraries."""

import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # The build backend that is installed here, called directly: no network, no isolation.
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=CHECKOUT / "study_viewer",
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("study_ingest_viewer-*.whl")
    return built


def test_it_holds_the_library_and_the_wire_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(CHECKOUT).as_posix()
        for package in ("study_viewer", "schemas")
        for path in (CHECKOUT / package).rglob("*")
        if path.suffix in (".py", ".json", ".typed")
    }
    assert names == files | {"study_viewer/pyproject.toml"}


def test_it_asks_for_what_the_project_asks_for(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        asked = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist")
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    ours = {Requirement(line) for line in project["dependencies"]}
    theirs = {Requirement(line) for line in asked or ()}
    assert {requirement.name for requirement in theirs} == {"aio-pika", "pydantic"}
    assert theirs <= ours


def test_it_works_where_the_worker_is_not_installed(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)  # what an installer does with a pure wheel
    program = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"worker", "migrations", "sqlalchemy", "asyncpg", "httpx",
                                      "fsrs", "structlog", "typer", "prometheus_client"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
target, path = sys.argv[1:]
sys.path.insert(0, target)
import study_viewer, schemas, schemas.documents
assert study_viewer.__file__.startswith(target) and schemas.__file__.startswith(target)
with study_viewer.Outbox(path) as outbox:
    study_viewer.Relay(outbox, "amqp://localhost", "ada")
print(len(schemas.documents.documents()), outbox.path.exists())
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, target, tmp_path / "viewer.db"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("5 True\n", "")
