"""Takes follow-up jobs: notes who wants which explanation, and which questions to review.

    FOLLOWUPS_AMQP_URL=amqp://jobs:...@localhost:5672/ FOLLOWUPS_DATABASE=jobs.db python consumer.py

Each job has its effect once: one transaction of SQLite stores the effect and the job's message_id,
and the ack comes after its commit. A job that can't be read is kept in the table `dead_jobs`. In
your application, do the same with your own database.
"""

import asyncio
import json
import os
import signal
import sqlite3
from contextlib import closing
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

KINDS = ("explanation.requested", "review.requested")
TABLES = """
CREATE TABLE IF NOT EXISTS done_jobs (message_id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS dead_jobs (message_id TEXT PRIMARY KEY, reason TEXT, body BLOB);
CREATE TABLE IF NOT EXISTS wanted_explanations (
    user_id INTEGER, question_id INTEGER, outcome TEXT, PRIMARY KEY (user_id, question_id));
CREATE TABLE IF NOT EXISTS to_review (
    user_id INTEGER, question_id INTEGER, pattern TEXT, PRIMARY KEY (user_id, question_id));
"""


def explanation(database: sqlite3.Connection, job: dict[str, Any]) -> None:
    """A question was answered wrong for the first time: write an explanation for this user."""
    database.execute(
        "INSERT OR REPLACE INTO wanted_explanations VALUES (?, ?, ?)",
        (int(job["user_id"]), int(job["question_id"]), str(job["outcome"])),
    )


def review(database: sqlite3.Connection, job: dict[str, Any]) -> None:
    """A session has shown that questions do not stick: suggest them to this user again."""
    database.executemany(
        "INSERT OR REPLACE INTO to_review VALUES (?, ?, ?)",
        [
            (int(job["user_id"]), int(each["question_id"]), str(each["pattern"]))
            for each in job["questions"]
        ],
    )


EFFECTS = {
    "study.explanation_requested.v1": explanation,
    "study.review_requested.v1": review,
}
"""By the type of the message, which has the version."""


def process(database: sqlite3.Connection, message: AbstractIncomingMessage) -> None:
    """The effect of one job, once. After it returns, the job can be acked.

    It does not wait for anything else, so a channel that closes can't cut a transaction in two.
    """
    # Without an id nobody could tell a job from its repetition. Ours always have one.
    message_id = message.message_id or f"without-id-{message.body!r}"
    try:
        with database:
            database.execute("INSERT INTO done_jobs VALUES (?)", (message_id,))
            EFFECTS[message.type or ""](database, json.loads(message.body))
    except sqlite3.IntegrityError:
        print(f"duplicate {message_id}", flush=True)
    except (ValueError, KeyError, TypeError) as error:
        with database:  # to be looked at by a person; the queue goes on
            database.execute(
                "INSERT OR IGNORE INTO dead_jobs VALUES (?, ?, ?)",
                (message_id, f"{type(error).__name__}: {error}", message.body),
            )
        print(f"dead {message_id}", flush=True)
    else:
        print(f"done {message_id}", flush=True)


async def main() -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    path = os.environ.get("FOLLOWUPS_DATABASE", "jobs.db")
    with closing(sqlite3.connect(path)) as database:
        database.executescript(TABLES)

        async def take(message: AbstractIncomingMessage) -> None:
            try:
                process(database, message)
            except sqlite3.OperationalError as error:  # locked, or the disk is full
                print(f"again {message.message_id}: {error}", flush=True)
                await asyncio.sleep(1)
                await message.reject(requeue=True)
            else:
                await message.ack()

        # It connects again by itself. What was not acked then comes back, and is a duplicate.
        connection = await aio_pika.connect_robust(os.environ["FOLLOWUPS_AMQP_URL"])
        async with connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=20)
            for kind in KINDS:
                # Passively: `study-ingest topology` has made the queues.
                queue = await channel.declare_queue(f"study.followups.{kind}", passive=True)
                await queue.consume(take)
            await stopping.wait()


if __name__ == "__main__":
    asyncio.run(main())
