"""The viewers' wheel: what is in it, and that it works in an application.

The application has modules of its own called `schemas`, `worker` and `viewer`.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

from devtools import environment

CHECKOUT = Path(__file__).parents[2]
PUBLISHED_SUFFIXES = (".py", ".json", ".typed")

APPLICATION = """
import sqlite3, sys
from contextlib import closing
from uuid import UUID

import schemas, viewer, worker
assert {schemas.OWNER, viewer.OWNER, worker.OWNER} == {"the application"}

from study_viewer import Attempt, AttemptBatch, BatchRefused, Outbox, Relay, State
from study_viewer.schemas.documents import documents

uuid = UUID("4bf92f35-77b3-4da6-a3ce-929d0e0e4736")
attempt = Attempt(question_pub_id="q-17", selected_choice=2)
with Outbox("app.db") as outbox, closing(sqlite3.connect("app.db")) as database:
    assert outbox.record(database, AttemptBatch(client_session_uuid=uuid, attempts=(attempt,)))
    too_many = AttemptBatch.model_construct(client_session_uuid=uuid, attempts=(attempt,) * 1001)
    try:
        outbox.record(database, too_many)
    except BatchRefused as refused:
        print(refused.rejection.reason)
    database.commit()
    Relay(outbox, "amqp://localhost", "ada")
    entry = outbox.get(uuid)
assert entry.state is State.PENDING
assert "migrations" not in sys.modules
print(entry.batch.attempts[0].question_pub_id, len(documents()))
"""


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


def asked_by(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    return [Requirement(line) for line in metadata.get_all("Requires-Dist") or ()]


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name
        }


def files(folder: Path) -> dict[str, bytes]:
    """The files of a package in the tree, by their path in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in PUBLISHED_SUFFIXES
    }


def copy_with_dependencies(names: list[str], target: Path) -> None:
    """Copy the distributions of these names, and all that they need, from our environment."""
    copied: set[str] = set()
    while names:
        name = names.pop()
        if name in copied:
            continue
        copied.add(name)
        found = distribution(name)
        for file in found.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                destination = target / file
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(found.locate_file(file)), destination)
        needed = (Requirement(line) for line in found.requires or ())
        names += [
            each.name for each in needed if not each.marker or each.marker.evaluate({"extra": ""})
        ]


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel and its dependencies, and no more."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    where = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=where))
    copy_with_dependencies([requirement.name for requirement in asked_by(wheel)], site)
    for words in (("install", "--no-index", wheel), ("check",)):
        pip = [environment.ensure_uv(), "pip", *words, "--no-cache", "--python", python]
        subprocess.run(pip, check=True, capture_output=True)
    return python


def test_it_installs_exactly_one_top_level_name(wheel: Path) -> None:
    assert {PurePosixPath(name).parts[0] for name in contents(wheel)} == {"study_viewer"}


def test_it_holds_the_library_and_a_copy_of_the_wire_and_nothing_else(wheel: Path) -> None:
    library = {
        f"study_viewer/{name}": content
        for name, content in files(CHECKOUT / "study_viewer").items()
        if not name.startswith("schemas/")
    }
    wire = {
        f"study_viewer/schemas/{name}": content
        for name, content in files(CHECKOUT / "schemas").items()
    }
    assert contents(wheel) == library | wire


def test_in_the_tree_the_wire_of_the_library_is_the_one_source() -> None:
    assert (CHECKOUT / "study_viewer" / "schemas").resolve() == CHECKOUT / "schemas"


def test_its_requirements_are_among_the_projects(wheel: Path) -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    ours = {Requirement(line) for line in project["dependencies"]}
    theirs = {each for each in asked_by(wheel) if each.marker is None}
    assert {requirement.name for requirement in theirs} == {"aio-pika", "pydantic"}
    assert theirs <= ours
    # Only an outbox in PostgreSQL needs more.
    extra = set(asked_by(wheel)) - theirs
    assert {(each.name, str(each.marker)) for each in extra} == {
        (name, 'extra == "postgres"') for name in ("asyncpg", "sqlalchemy")
    }


def test_it_works_in_an_application_with_modules_of_the_same_names(
    python: Path, tmp_path: Path
) -> None:
    for name in ("schemas", "worker", "viewer"):
        (tmp_path / f"{name}.py").write_text('OWNER = "the application"\n')
    (tmp_path / "app.py").write_text(APPLICATION)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-W", "error", "app.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("too_large\nq-17 12\n", "")


def test_it_checks_its_published_documents_where_it_is_installed(python: Path) -> None:
    done = subprocess.run(
        [python, "-I", "-m", "study_viewer.schemas", "check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
