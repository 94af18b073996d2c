"""The consumers of follow-up jobs: each job once, a bad one kept, and the rest goes on."""

import asyncio
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.followups import EXPLANATION, REVIEW
from tests import factories as make
from tests.broker_fixtures import Broker
from tests.examples.test_examples import EXAMPLES, node_modules
from tests.factories import right, sent, wrong
from tests.worker_process import logging
from worker.broker.publisher import Publisher
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.relay.relay import Relay

__all__ = ["node_modules"]

pytestmark = pytest.mark.broker

FOLDER = EXAMPLES / "followups"
Effects = Callable[[], tuple[set[int], set[int], int]]
"""The questions to explain, the questions to review, and the number of dead jobs."""


def _consumer(
    broker: Broker, folder: Path, *command: str
) -> AbstractAsyncContextManager[asyncio.StreamReader]:
    variables = {
        "FOLLOWUPS_AMQP_URL": broker.settings.amqp_url.get_secret_value(),
        "FOLLOWUPS_DATABASE": str(folder / "jobs.db"),
        "FOLLOWUPS_FOLDER": str(folder / "jobs"),
    }
    return logging(*command, env=os.environ | variables, cwd=folder, stderr=None)


async def _publish(broker: Broker, job: Mapping[str, Any]) -> None:
    """As a relay does, or one that died after the confirm does again."""
    await broker.publish(
        job["body"],
        exchange=job["exchange"],
        routing_key=job["routing_key"],
        type=job["type"],
        message_id=str(job["message_id"]),
    )


async def _lines(log: asyncio.StreamReader, count: int) -> list[str]:
    async with asyncio.timeout(60):
        return sorted([(await log.readline()).decode().split()[0] for _ in range(count)])


async def _each_job_has_its_effect_once(
    broker: Broker,
    publisher: Publisher,
    engine: AsyncEngine,
    folder: Path,
    effects: Effects,
    *command: str,
) -> None:
    stuck, fine = await make.publish(engine, 2, user_id=42)
    policy = Policy(stuck_attempts_never_correct=1)
    await Ingest(engine, policy)([sent(wrong(stuck), right(fine))])
    jobs = await make.rows(engine, "SELECT * FROM outbox WHERE exchange = 'study.followups'")
    assert len(jobs) == 2
    async with _consumer(broker, folder, *command) as log:
        await Relay(engine, publisher, broker.settings).relay()
        assert await _lines(log, 2) == ["done", "done"]
        assert effects() == ({stuck.question_id}, {stuck.question_id}, 0)
        for job in jobs:
            await _publish(broker, job)
        assert await _lines(log, 2) == ["duplicate", "duplicate"]
        for number, (body, kind) in enumerate(
            (
                ("{", jobs[0]["type"]),
                (json.dumps({"user_id": None}), jobs[0]["type"]),
                (jobs[0]["body"], "study.explanation_requested.v2"),
            )
        ):
            await broker.publish(
                body,
                exchange=amqp.FOLLOWUPS_EXCHANGE,
                routing_key=EXPLANATION.routing_key,
                type=kind,
                message_id=f"bad/{number}",
            )
        assert await _lines(log, 3) == ["dead"] * 3
    assert effects() == ({stuck.question_id}, {stuck.question_id}, 3)
    for kind in (EXPLANATION.routing_key, REVIEW.routing_key):
        await broker.until_depth(amqp.followups_queue(kind), 0)
    async with _consumer(broker, folder, *command) as log:  # restarted, it remembers
        await _publish(broker, jobs[0])
        assert await _lines(log, 1) == ["duplicate"]


async def test_python(
    broker: Broker, publisher: Publisher, engine: AsyncEngine, tmp_path: Path
) -> None:
    def effects() -> tuple[set[int], set[int], int]:
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as database:
            wanted, review, dead = (
                database.execute(f"SELECT {column} FROM {table}").fetchall()
                for column, table in (
                    ("question_id", "wanted_explanations"),
                    ("question_id", "to_review"),
                    ("message_id", "dead_jobs"),
                )
            )
        return {row[0] for row in wanted}, {row[0] for row in review}, len(dead)

    command = (sys.executable, str(FOLDER / "consumer.py"))
    await _each_job_has_its_effect_once(broker, publisher, engine, tmp_path, effects, *command)


async def test_node(
    node_modules: Path, broker: Broker, publisher: Publisher, engine: AsyncEngine, tmp_path: Path
) -> None:
    def effects() -> tuple[set[int], set[int], int]:
        done = [json.loads(path.read_text()) for path in (tmp_path / "jobs/done").iterdir()]
        explained = {each["explain"]["question_id"] for each in done if "explain" in each}
        reviewed = {id for each in done if "review" in each for id in each["review"]["questions"]}
        return explained, reviewed, len([*(tmp_path / "jobs/dead").iterdir()])

    script = shutil.copy(FOLDER / "node/consumer.mjs", node_modules / "consumer.mjs")
    await _each_job_has_its_effect_once(
        broker, publisher, engine, tmp_path, effects, "node", str(script)
    )
