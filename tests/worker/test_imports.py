"""What importing a part of the worker loads, asked of a fresh interpreter."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("worker.ingest.resolve", ("sqlalchemy", "asyncpg", "aio_pika", "aiormq")),
        ("worker.domain.fold", ("sqlalchemy", "asyncpg", "aio_pika", "pydantic")),
        ("schemas.amqp", ("worker", "sqlalchemy", "asyncpg", "aio_pika")),
    ],
)
def test_a_pure_part_loads_no_driver(module: str, forbidden: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert module in loaded
    assert not {name.partition(".")[0] for name in loaded} & set(forbidden)


# Not pydantic: the command line itself reads values with it.
HEAVY = {
    "aio_pika",
    "alembic",
    "asyncpg",
    "httpx",
    "jinja2",
    "opentelemetry",
    "prometheus_client",
    "sqlalchemy",
    "starlette",
    "structlog",
    "uvicorn",
    "uvloop",
}


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (("--help",), {}),
        (("--version",), {}),
        (("dead", "replay", "--help"), {}),
        (("worker", "--no-such-option"), {}),
        ((), {"_STUDY_INGEST_COMPLETE": "complete_bash", "COMP_WORDS": "st d", "COMP_CWORD": "1"}),
    ],
    ids=["help", "version", "help of a command", "usage error", "completion"],
)
def test_a_command_line_that_starts_no_work_loads_nothing_that_work_needs(
    words: tuple[str, ...], variables: dict[str, str]
) -> None:
    program = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from worker.cli import main
sys.argv[0] = "study-ingest"
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "typer" in loaded
    assert not loaded & HEAVY
    if variables:
        assert {"dead", "doctor", "database-role"} <= set(done.stdout.split())
