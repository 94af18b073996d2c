"""`status` and `top` show the truth, and name what needs attention."""

import asyncio
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import make_url

from schemas import amqp
from schemas.followups import EXPLANATION, KINDS, REVIEW
from tests import factories as make
from tests.broker_fixtures import PATIENCE, until
from tests.factories import batch, right
from tests.whole_worker import WORKER
from tests.worker.operate.commands import environment, invoke
from tests.worker.operate.conftest import Site
from worker import __version__

pytestmark = pytest.mark.broker


async def seen(site: Site, **variables: str) -> dict[str, Any]:
    """`status --json`, whose exit code says what `healthy` does."""
    result = await invoke(site, "status", "--json", **variables)
    found: dict[str, Any] = json.loads(result.stdout)
    codes = {each["code"] for each in found["attention"]}
    expected = 5 if "database_away" in codes else 6 if "broker_away" in codes else 1
    assert result.exit_code == (0 if found["healthy"] else expected), result.exception
    assert found["healthy"] is all(each["severity"] == "note" for each in found["attention"])
    for each in found["attention"]:
        assert each["found"].endswith(".") and each["remedy"].endswith(".")
    return found


def codes_of(found: dict[str, Any]) -> set[str]:
    return {each["code"] for each in found["attention"]}


def queue(found: dict[str, Any], name: str = amqp.ATTEMPTS_QUEUE) -> dict[str, Any]:
    (one,) = (each for each in found["broker"]["queues"] if each["name"] == name)
    return dict(one)


async def test_all_is_well_while_a_worker_works(site: Site) -> None:
    async with site.working():
        # At once: the broker's own counts lag.
        found = await until(lambda: seen(site), lambda found: found["workers"])
        plain = await invoke(site, "status")
    assert queue(found)["consumers"] == 1
    assert found["database"]["schema"] == found["database"]["schema_wanted"]
    assert found["database"]["outbox"] == {
        "messages": 0,
        "oldest_age": 0.0,
        "oldest_result_age": 0.0,
    }
    assert "All is well." in plain.stdout and "\x1b" not in plain.stdout
    (worker,) = found["workers"]
    assert (worker["name"], worker["host"], worker["version"]) == (WORKER, "a-host", __version__)
    assert (worker["is_silent"], worker["in_hand"], worker["partitions"]) == (False, 0, [])
    assert WORKER in plain.stdout
    assert (await seen(site))["workers"] == []  # it has ended


async def test_a_worker_says_why_it_is_paused_and_one_that_was_killed_is_silent(
    site: Site,
) -> None:
    await make.execute(
        site.engine,
        "INSERT INTO ingest_workers VALUES"
        " ('gone:1:a', '0.2.0', now(), now() - interval '50 minutes', 'consuming', 3, NULL),"
        " ('forgotten:1:a', '0.2.0', now(), now() - interval '61 minutes', 'consuming', 3, NULL)",
    )

    async def state() -> str:
        query = f"SELECT state FROM ingest_workers WHERE worker = '{WORKER}'"
        (row,) = await make.rows(site.engine, query)
        return str(row["state"])

    async with site.working():
        await invoke(site, "pause", "--reason", "moving house")

        await until(state, "paused".__eq__)
        paused, gone = (await seen(site))["workers"]
        assert paused["paused_for"] == "the gate is closed"
        assert (gone["name"], gone["is_silent"]) == ("gone:1:a", True)
        plain = (await invoke(site, "status")).stdout
        assert "paused: the gate is closed" in plain and "silent for 50 min" in plain
        # A worker of version 0.1.0 says nothing, and the broker still counts it.
        await invoke(site, "resume")
        await until(state, "consuming".__eq__)
        for statement in (
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN RETURN NULL; END'",
            "CREATE TRIGGER nothing BEFORE INSERT ON ingest_workers FOR EACH ROW"
            " EXECUTE FUNCTION nothing()",
            "DELETE FROM ingest_workers",
        ):
            await make.execute(site.engine, statement)
        assert (await seen(site))["other_workers"] == 1
        assert "1 more worker is of a version" in (await invoke(site, "status")).stdout


async def test_status_names_what_needs_attention(site: Site) -> None:
    await site.park(batch(right("nowhere")))
    await site.publish(batch(right("nowhere")))
    await invoke(site, "pause", "--reason", "moving house")
    await make.execute(
        site.engine,
        "INSERT INTO outbox (message_id, exchange, routing_key, type, headers, body, created_at)"
        " VALUES (gen_random_uuid(), 'x', 'x', 'x', '{}', '{}', now() - interval '5 minutes')",
    )

    def told(found: dict[str, Any]) -> bool:
        # The broker's counts lag.
        return codes_of(found) >= {"dead_letters", "paused", "outbox_lag"} and (
            queue(found)["ready"] == 1
        )

    found = await until(lambda: seen(site), told)

    assert found["database"]["dead"]["by_reason"] == {"nothing_resolved": 1}
    assert found["database"]["dead"]["oldest"]
    assert found["database"]["pause"]["reason"] == "moving house"
    assert found["database"]["outbox"]["oldest_age"] > 290
    # The pause is why nobody consumes: nobody is told to start a worker as well.
    assert "no_consumer" not in codes_of(found)
    sentences = " ".join(each["found"] for each in found["attention"])
    for words in ("1 dead letters", "(moving house)", "wait in the outbox"):
        assert words in sentences
    plain = (await invoke(site, "status")).stdout
    assert "1 nothing_resolved" in plain and "paused" in plain


async def test_a_server_that_is_away_is_part_of_the_picture(site: Site) -> None:
    found = await seen(site, INGEST_DATABASE_URL="postgresql://127.0.0.1:1/nowhere")
    assert found["database"] is None and found["broker"] is not None
    assert "can't be reached" in found["attention"][0]["found"]
    assert "no_consumer" not in codes_of(found)
    found = await seen(site, INGEST_MANAGEMENT_URL="http://127.0.0.1:1")
    assert found["broker"] is None and found["database"] is not None


async def test_a_schema_that_does_not_fit_needs_attention(site: Site) -> None:
    await make.execute(site.engine, "UPDATE study_ingest_version SET version_num = '0001'")
    found = await seen(site)
    (wrong,) = (each for each in found["attention"] if each["code"] == "schema")
    assert "`study-ingest migrate`" in wrong["remedy"]


REFUSING = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE 'No space left on device' USING ERRCODE = '53100'; END $$"
)


async def test_a_database_that_takes_no_writes_is_why_nobody_consumes(site: Site) -> None:
    (question,) = await make.publish(site.engine)
    await make.execute(site.engine, REFUSING)
    await make.execute(
        site.engine,
        "CREATE TRIGGER refuse BEFORE INSERT ON ingest_inbox EXECUTE FUNCTION refuse()",
    )
    async with site.working() as worker:
        await site.publish(batch(right(question)))
        assert await worker.changed.until(lambda: worker.state == "paused", PATIENCE)
        # The worker's own /ready says the same.
        assert "No space left on device" in str(worker.why_paused)
        found = await until(lambda: seen(site), lambda found: "no_writes" in codes_of(found))
        assert "no_consumer" not in codes_of(found)
        (refused,) = (each for each in found["attention"] if each["code"] == "no_writes")
        assert "No space left on device" in refused["found"] and refused["severity"] == "danger"
        assert found["database"]["refusal"] == refused["found"]
        await make.execute(site.engine, "DROP TRIGGER refuse ON ingest_inbox")
        await worker.changed.until(lambda: worker.counts["ingested"] == 1, PATIENCE)
    assert "no_writes" not in codes_of(await seen(site))


async def test_a_login_that_may_only_read_says_nothing_of_writes(
    site: Site, database_url: str
) -> None:
    role = f"test_{uuid4().hex[:12]}"
    await make.execute(site.engine, f"CREATE ROLE {role} LOGIN")
    try:
        await make.execute(site.engine, f"GRANT pg_read_all_data TO {role}")
        url = make_url(database_url).set(username=role).render_as_string(hide_password=False)
        found = await seen(site, INGEST_DATABASE_URL=url)
        assert {"no_consumer"} <= codes_of(found) and "no_writes" not in codes_of(found)
    finally:
        await make.execute(site.engine, f"DROP OWNED BY {role}")
        await make.execute(site.engine, f"DROP ROLE {role}")


async def test_all_missing_queues_are_named_at_once(site: Site) -> None:
    channel = await site.broker.channel()
    await channel.queue_delete(amqp.NEWER_QUEUE)
    await channel.queue_delete(amqp.followups_queue(REVIEW.routing_key))

    def told(found: dict[str, Any]) -> bool:
        return "queues_missing" in codes_of(found)

    found = await until(lambda: seen(site), told)
    (missing,) = (each for each in found["attention"] if each["code"] == "queues_missing")
    assert missing["found"].startswith("2 queues are missing:")
    assert amqp.NEWER_QUEUE in missing["found"]
    assert amqp.followups_queue(REVIEW.routing_key) in missing["found"]
    assert missing["severity"] == "danger"


async def test_status_says_since_when_the_jobs_of_a_full_queue_wait(site: Site) -> None:
    await make.execute(
        site.engine,
        "INSERT INTO outbox (message_id, exchange, routing_key, type, headers, body, created_at)"
        " SELECT gen_random_uuid(), 'study.followups', 'review.requested', 'x', '{}', '{}',"
        " timestamptz '2026-03-01 12:00Z' FROM generate_series(1, 3)",
    )
    for _ in range(2):
        await site.broker.publish(
            b"{}", exchange=amqp.FOLLOWUPS_EXCHANGE, routing_key=REVIEW.routing_key
        )

    def told(found: dict[str, Any]) -> bool:
        return "followups_full" in codes_of(found)

    found = await until(lambda: seen(site, INGEST_MAX_FOLLOWUPS="2"), told)
    (full,) = (each for each in found["attention"] if each["code"] == "followups_full")
    assert "study.followups.review.requested has 2 jobs and is full" in full["found"]
    assert "3 more have been waiting in the outbox since 2026-03-01 12:00:00" in full["found"]
    assert "outbox_lag" not in codes_of(found), "a cause is named once"
    found = await seen(site, INGEST_MAX_FOLLOWUPS="3")
    assert "outbox_lag" in codes_of(found) and "followups_full" not in codes_of(found)


async def test_jobs_that_nobody_takes_and_viewers_that_nobody_hears(site: Site) -> None:
    await site.broker.publish(
        b"{}", exchange=amqp.FOLLOWUPS_EXCHANGE, routing_key=EXPLANATION.routing_key
    )
    await make.grant(site.engine, "deaf", 7)

    def told(found: dict[str, Any]) -> bool:
        return {"followups_unconsumed", "viewer_without_queue"} <= codes_of(found)

    found = await until(lambda: seen(site), told)
    (deaf,) = (each for each in found["attention"] if each["code"] == "viewer_without_queue")
    assert deaf["found"].startswith("1 viewer has a grant and no results queue")
    assert "deaf" in deaf["found"]
    assert "no_consumer" in codes_of(found)


QUEUES = [
    *(amqp.ATTEMPTS_QUEUE, amqp.DEAD_QUEUE, amqp.NEWER_QUEUE),
    *(amqp.followups_queue(kind.routing_key) for kind in KINDS),
]


@asynccontextmanager
async def in_a_terminal(
    site: Site, columns: int, rows: int, *words: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """The program in a terminal of this size, and the terminal's other end."""
    keyboard, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    there = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("study-ingest"),
        *words,
        env=there | environment(site) | {"TERM": "xterm"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    try:
        yield process, keyboard
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(keyboard)


def _plain(shown: bytes) -> str:
    """Without colors and other control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r", "")


@pytest.mark.parametrize("columns", [24, 60, 80, 200])
async def test_a_narrow_terminal_keeps_whole_names_and_the_alarms_first(
    site: Site, columns: int
) -> None:
    async with in_a_terminal(site, columns, 14, "status") as (process, keyboard):
        text = _plain(await asyncio.to_thread(_read_until, keyboard, b"schema "))
        assert await process.wait() == 1
    lines = text.strip().split("\n")
    assert lines[0].startswith("danger: Nobody consumes")
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert all(len(line.rstrip()) <= columns for line in lines)
    if columns >= 60:
        for name in QUEUES:
            assert name in text
        # Every figure is there with its name.
        assert text.count("done/s") == (1 if columns > 60 else text.count("in hand"))
    else:  # a name goes on in the next line
        whole = "".join(line.rstrip() for line in lines)
        for name in QUEUES:
            assert name in whole


@pytest.mark.parametrize("size", [(60, 14), (40, 6), (200, 50)], ids=str)
async def test_top_shows_the_alarms_in_a_terminal_of_any_height(
    site: Site, size: tuple[int, int]
) -> None:
    columns, rows = size
    words = ("top", "--interval", "0.5")
    async with in_a_terminal(site, columns, rows, *words) as (process, keyboard):
        shown = await asyncio.to_thread(_read_until, keyboard, b"Nobody consumes", 1)
        frame = _plain(shown[shown.rindex(b"danger") :])
        assert frame.startswith("danger: Nobody consumes")
        assert len(frame.split("\n")) <= rows
        os.write(keyboard, b"q")
        async with asyncio.timeout(30):
            assert await process.wait() == 0


async def test_top_prints_once_when_piped(site: Site) -> None:
    result = await invoke(site, "top")
    assert result.exit_code == 1 and "study.attempts" in result.stdout


async def test_top_refreshes_in_a_terminal_until_q(site: Site) -> None:
    words = ("top", "--interval", "0.5")
    async with in_a_terminal(site, 120, 40, *words) as (process, keyboard):
        shown = await asyncio.to_thread(_read_until, keyboard, b"q ends")
        assert b"study.attempts" in shown
        os.write(keyboard, b"q")
        async with asyncio.timeout(30):
            assert await process.wait() == 0


def _read_until(terminal: int, words: bytes, more: int = 0) -> bytes:
    """What is shown up to these words, and so many reads more."""
    shown = b""
    while words not in shown:
        shown += os.read(terminal, 4096)
    for _ in range(more):
        shown += os.read(terminal, 4096)
    return shown
