"""`./dev matrix`: the tests that depend on the servers, with each supported version of both.

Where a version can't be had on this machine, the table says why.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from devtools import postgres_packages
from devtools.erlang import programs
from devtools.errors import DevError
from devtools.places import CHECKOUT, log_file
from devtools.postgres import REMEDY, binaries
from devtools.processes import run_step
from devtools.progress import say

TESTS = (
    "tests/worker/broker",
    "tests/worker/store/test_schema.py",
    "tests/worker/store/test_plans.py",
    "tests/worker/ingest/test_group.py",
    "tests/worker/ingest/test_races.py",
    "tests/worker/test_relay.py",
    "tests/faults/test_database_servers.py",
)
"""What is run with each pair: what depends on how a server behaves, in a few minutes."""
POSTGRES = {
    **{str(number): suite for suite, number in postgres_packages.VERSIONS.items()},
    "18": "",
}
RABBITMQ = {"3.10": "bookworm", "4.0": "trixie", "4.3": "forky"}
PAGE = CHECKOUT / "docs/versions.md"
_BEGIN, _END = "<!-- ./dev matrix --write: from here -->", "<!-- to here -->"


class Result(NamedTuple):
    """One row of the table: the exact versions, and what pytest counted, or why it did not run."""

    postgres: str
    rabbitmq: str
    counts: str
    ok: bool


def pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs that are asked for, as "15/4.0"; without any, all of them.

    Raises ValueError for a pair that is not supported.
    """
    known = [(postgres, rabbitmq) for postgres in POSTGRES for rabbitmq in RABBITMQ]
    asked = [tuple(word.split("/")) for word in words]
    for word, pair in zip(words, asked, strict=True):
        if pair not in known:
            raise ValueError(f"no pair {word!r}, but {', '.join('/'.join(each) for each in known)}")
    return [pair for pair in known if not asked or pair in asked]


def run(postgres: str, rabbitmq: str) -> Result:
    """Runs the tests with one pair of versions."""
    suites = POSTGRES[postgres], RABBITMQ[rabbitmq]
    try:
        postgres, rabbitmq = _postgres_version(suites[0]), _rabbitmq_version(suites[1])
    except DevError as error:
        return Result(postgres, rabbitmq, f"can't be had on this machine: {error}", ok=False)
    say(f"PostgreSQL {postgres} with RabbitMQ {rabbitmq}")
    env = {name: value for name, value in os.environ.items() if not name.startswith("INGEST_")}
    env |= {"DEV_POSTGRES_SUITE": suites[0], "DEV_RABBITMQ_SUITE": suites[1]}
    log = log_file(f"matrix-{postgres}-{rabbitmq}")
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, CHECKOUT / "dev", "test", "-q", *TESTS],
            cwd=CHECKOUT,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    counted = re.findall(r"^=*\s*((?:\d+ \w+(?:, )?)+) in ", log.read_text(), re.MULTILINE)
    ok = done.returncode == 0 and bool(counted)
    counts = counted[-1] if counted else "did not run"
    return Result(postgres, rabbitmq, counts if ok else f"{counts} (log: {log})", ok)


def table(results: Sequence[Result]) -> str:
    """The results as a table of Markdown."""
    rows = [
        f"| {each.postgres} | {each.rabbitmq} | {each.counts.partition(' (log')[0]} |"
        for each in results
    ]
    return "\n".join(["| PostgreSQL | RabbitMQ | tests |", "| --- | --- | --- |", *rows])


def write(results: Sequence[Result]) -> None:
    """Replaces the table in docs/versions.md, with the date and the commit."""
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    head = f"On {when}, at commit {_commit()}:"
    PAGE.write_text(f"{before}{_BEGIN}\n{head}\n\n{table(results)}\n{_END}{after}")


def _commit() -> str:
    argv = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _postgres_version(suite: str) -> str:
    said = run_step("postgres", (binaries(suite or None) / "postgres", "--version"), REMEDY)
    return said.split()[2]


def _rabbitmq_version(suite: str) -> str:
    found = (programs(suite).scripts.parent / "lib").glob("rabbitmq_server-*")
    return next(found).name.partition("-")[2]
