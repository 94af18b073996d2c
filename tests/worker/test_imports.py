"""What importing a part of the worker loads, asked of a fresh interpreter."""

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
