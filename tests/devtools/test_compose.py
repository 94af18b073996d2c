"""What ./dev asks of docker, and what it reports if docker fails. A stand-in plays docker."""

from pathlib import Path

import pytest

from devtools import compose, processes
from devtools.errors import DevError
from devtools.state import read_json

DOCKER = """#!/bin/sh
echo "$@ POSTGRES_PORT=$POSTGRES_PORT" >>"{calls}"
case "$*" in *" up "*) exit {up} ;; esac
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, up: int = 0) -> Path:
    """Put a docker on PATH that answers, and writes down what it was asked."""
    calls = folder / "calls"
    docker = folder / "docker"
    docker.write_text(DOCKER.format(calls=calls, up=up))
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(processes, "log_file", lambda name: folder / f"{name}.log")
    return calls


def test_no_docker_is_an_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compose.obstacle() == "docker isn't installed"
    stand_in(tmp_path, monkeypatch)
    assert compose.obstacle() is None


def test_a_container_is_started_at_its_port_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(tmp_path, monkeypatch)
    monkeypatch.setattr(compose, "postgres_ready", lambda port, user, database: True)
    server = compose.ComposePostgres(tmp_path / "pair" / "docker-postgres")
    server.start()
    port = read_json(server.folder / "ports.json")["POSTGRES_PORT"]
    assert server.url == f"postgresql://worker@127.0.0.1:{port}/study"
    assert server.alive()
    server.stop()
    assert not server.alive()
    server.stop()
    up, rm = (line for line in calls.read_text().splitlines() if " -f " in line)
    assert f" up -d postgres POSTGRES_PORT={port}" in up
    assert f" rm --stop --force -v postgres POSTGRES_PORT={port}" in rm


def test_an_engine_that_can_not_start_it_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, up=1)
    server = compose.ComposeRabbitMQ(tmp_path / "pair" / "docker-rabbitmq")
    with pytest.raises(DevError, match=r"^docker failed .*: see that the engine can pull images"):
        server.start()
