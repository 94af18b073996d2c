"""Which servers ./dev chooses, and when it stops its own."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools import instances, servers
from devtools.errors import DevError
from devtools.probe import broker_trouble, database_trouble
from devtools.processes import started_at
from devtools.servers import Choice, Ledger, Service, choose
from devtools.state import free_ports


def service(obstacle: str | None = None) -> Service:
    return Service("RabbitMQ", "INGEST_AMQP_URL", lambda url: None, lambda: obstacle)


@pytest.mark.parametrize(
    ("environ", "embedded", "docker", "source"),
    [
        ({}, None, None, "embedded"),
        ({"INGEST_AMQP_URL": ""}, None, None, "embedded"),
        ({"INGEST_AMQP_URL": "amqp://x"}, None, None, "given"),
        ({"INGEST_AMQP_URL": "amqp://x", "DEV_BACKEND": "docker"}, None, None, "given"),
        ({}, "no Debian", None, "docker"),
        ({"DEV_BACKEND": "docker"}, None, None, "docker"),
        ({"DEV_BACKEND": "embedded"}, None, "no engine", "embedded"),
    ],
)
def test_the_servers_are_chosen_from_what_is_available(
    environ: dict[str, str], embedded: str | None, docker: str | None, source: str
) -> None:
    assert choose(service(embedded), environ, lambda: docker).source == source


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (
            {},
            "no RabbitMQ: INGEST_AMQP_URL is not set, no Debian, no engine: "
            "set INGEST_AMQP_URL to one of yours, or start Docker.",
        ),
        (
            {"DEV_BACKEND": "embedded"},
            "no RabbitMQ: INGEST_AMQP_URL is not set, no Debian: "
            "set INGEST_AMQP_URL to one of yours, or start Docker.",
        ),
        (
            {"DEV_BACKEND": "docker"},
            "no RabbitMQ: DEV_BACKEND is docker, no engine: "
            "set INGEST_AMQP_URL to one of yours, or start Docker.",
        ),
        ({"DEV_BACKEND": "podman"}, "DEV_BACKEND is 'podman': give auto, embedded or docker."),
    ],
)
def test_if_no_servers_can_be_chosen_the_error_says_why_and_what_to_do(
    environ: dict[str, str], sentence: str
) -> None:
    with pytest.raises(DevError) as raised:
        choose(service("no Debian"), environ, lambda: "no engine")
    assert str(raised.value) == sentence


def test_the_reason_for_the_choice_is_reported() -> None:
    made = choose(service("no Debian"), {}, lambda: None)
    assert made == Choice("docker", "INGEST_AMQP_URL is not set and no Debian")


def test_a_url_that_does_not_answer_is_an_error_never_a_fall_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_ports(1)[0]
    monkeypatch.setenv("INGEST_DATABASE_URL", f"postgresql://x@127.0.0.1:{port}/x")
    with pytest.raises(
        DevError, match=r"^no PostgreSQL answers at INGEST_DATABASE_URL \(.*refused"
    ):
        servers.choices()


def test_a_server_of_another_protocol_is_rejected() -> None:
    database = os.environ["INGEST_DATABASE_URL"]
    broker = os.environ["INGEST_AMQP_URL"]
    assert database_trouble(database) is None
    assert broker_trouble(broker) is None
    assert broker_trouble(database.replace("postgresql", "amqp")) is not None
    assert database_trouble(broker.replace("amqp", "postgresql")) is not None
    assert "is not postgresql://" in str(database_trouble("localhost:5432"))


class Fake:
    """A server that only remembers."""

    def __init__(self, folder: Path) -> None:
        self.up = folder / "up"

    def start(self) -> None:
        self.up.touch()

    def stop(self, seconds: float) -> None:
        self.up.unlink(missing_ok=True)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """A ledger with two running servers in it, "a" and "b"."""

    def in_home(*parts: str) -> Path:
        folder = tmp_path.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    monkeypatch.setattr(servers, "home", lambda: tmp_path)
    monkeypatch.setattr(servers, "in_home", in_home)
    monkeypatch.setattr(instances, "in_home", in_home)
    monkeypatch.setattr(servers, "_server", lambda key: Fake(in_home("pair", key)))
    for key in ("a", "b"):
        Fake(in_home("pair", key)).start()
    yield Ledger()


def running(ledger: Ledger) -> set[str]:
    return {path.parent.name for path in (ledger.path.parent / "pair").glob("*/up")}


def test_servers_in_use_or_kept_keep_running_and_others_stop(ledger: Ledger) -> None:
    ledger.enter(["a"], keep=False)
    ledger.settle()
    assert running(ledger) == {"a"}
    ledger.enter(["a"], keep=True)
    ledger.leave()
    ledger.settle()
    assert running(ledger) == {"a"}


def test_the_last_command_that_uses_a_server_stops_it(ledger: Ledger) -> None:
    ledger.enter(["a", "b"], keep=False)
    ledger.leave()
    ledger.settle()
    assert running(ledger) == set()


def test_a_user_that_was_killed_does_not_count(ledger: Ledger) -> None:
    with subprocess.Popen(["sleep", "60"]) as user:
        started = started_at(user.pid)
        ledger.write({"a": {"kept": False, "users": [{"pid": user.pid, "started": started}]}})
        ledger.settle()
        assert running(ledger) == {"a"}
        user.kill()
    ledger.settle()
    assert running(ledger) == set()


def test_a_user_with_an_id_that_was_given_out_again_does_not_count(ledger: Ledger) -> None:
    ledger.write({"a": {"kept": False, "users": [{"pid": os.getpid(), "started": 1}]}})
    ledger.settle()
    assert running(ledger) == set()


def test_private_servers_of_the_dead_are_removed_and_of_the_living_are_not(ledger: Ledger) -> None:
    mine, orphan = instances.new_folder("mine"), instances.new_folder("orphan")
    (orphan / "owner.json").write_text('{"pid": 1, "started": -1}')
    ledger.settle()
    assert mine.exists()
    assert not orphan.exists()
