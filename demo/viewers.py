"""`python -m demo.viewers`: simulated viewers that run until SIGTERM, for the compose file.

It creates a question bank and a login for each viewer, like an operator, and records sessions in
real outboxes, which the library's own relay publishes. After SIGTERM it records nothing more, waits
for every result, and prints the numbers. It exits with 0 only if everything was ingested.
"""

import argparse
import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Collection
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from demo import bank, sessions
from demo.phone import Phone
from study_viewer import RelaySettings, Status
from worker.cli.shared import engine_of
from worker.errors import IngestError, ViewerError
from worker.settings import Settings, load_settings
from worker.store.engine import transaction

_SEED: Final = 2026
_SESSION_TIME: Final = timedelta(minutes=17)
_NEWS_INTERVAL: Final = 10.0
_RELAY: Final = RelaySettings(
    declare_results_queue=False,  # `viewer add` has made it
    retry_delay_max=5.0,  # so that a person who restarts the broker need not wait a minute
)


async def main() -> int:
    """Returns 0 only if everything that was recorded was ingested."""
    arguments = _arguments()
    settings = load_settings()
    questions = bank.made_up(random.Random(_SEED), arguments.viewers)
    async with engine_of(settings, connections=1, name="demo viewers") as engine:
        if not await _is_published(engine, questions):
            await bank.publish(settings.database_url.get_secret_value(), questions)

    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    by_user: dict[int, list[bank.Question]] = {}
    for question in questions:
        by_user.setdefault(question.user_id, []).append(question)
    async with AsyncExitStack() as stack:
        phones = {
            user: await stack.enter_async_context(_phone(settings, arguments.folder, user))
            for user in by_user
        }
        _tell("recording", phones.values())
        news = asyncio.create_task(_news(phones.values()))
        await _record(phones, by_user, arguments.rate, stop)
        news.cancel()
        _tell("waiting for results", phones.values())
        for phone in phones.values():
            await phone.all_settled()
        account = _tell("done", phones.values())
    return 0 if account["ingested"] == account["recorded"] else 1


async def _is_published(engine: AsyncEngine, questions: list[bank.Question]) -> bool:
    async with transaction(engine) as connection:
        found = await connection.scalar(
            text("SELECT count(*) FROM published WHERE pub_id = ANY(:pub_ids)"),
            {"pub_ids": [question.pub_id for question in questions]},
        )
    return bool(found == len(questions))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.viewers")
    parser.add_argument("--viewers", type=int, default=4, help="each with a learner of its own")
    parser.add_argument("--rate", type=float, default=5.0, help="sessions a second, of them all")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("/var/lib/study-viewers"),
        help="of the outboxes, which a restart finds again",
    )
    return parser.parse_args()


def _phone(settings: Settings, folder: Path, user: int) -> Phone:
    """A viewer for one learner, who is not given to the workers' own login."""
    name = f"phone-{user}"
    url = urlsplit(settings.amqp_url.get_secret_value())
    address = url.netloc.rpartition("@")[2]
    url = url._replace(netloc=f"{name}:{_password(name, user)}@{address}")
    return Phone(folder, url.geturl(), name, _RELAY)


def _password(name: str, user: int) -> str:
    """As an operator gets it. Kept nowhere, so a viewer that is there already gets a new one."""
    for words in (("add", name, "--user", str(user)), ("rotate", name)):
        done = subprocess.run(  # noqa: S603  # our own words
            [sys.executable, "-m", "worker", "viewer", *words, "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return str(json.loads(done.stdout)["password"])
    raise ViewerError(f"No login for {name}: {done.stderr.strip()}")


async def _record(
    phones: dict[int, Phone],
    questions: dict[int, list[bank.Question]],
    rate: float,
    stop: asyncio.Event,
) -> None:
    rng = random.Random()
    while not stop.is_set():
        user = rng.choice(list(phones))
        began = datetime.now(UTC) - _SESSION_TIME
        phones[user].record(sessions.session(rng, questions[user], began))
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), rng.expovariate(rate))


async def _news(phones: Collection[Phone]) -> None:
    while True:
        await asyncio.sleep(_NEWS_INTERVAL)
        _tell("recording", phones)


def _tell(doing: str, phones: Collection[Phone]) -> dict[str, int]:
    """One line of what the outboxes hold."""
    found = sum((phone.counts() for phone in phones), Counter[Status | None]())
    account = {
        "recorded": found.total(),
        "waiting": found[None],
        "ingested": found[Status.INGESTED] + found[Status.ALREADY_INGESTED],
        "rejected": found[Status.REJECTED],
        "attempts": sum(phone.attempts() for phone in phones),
    }
    print(json.dumps({"viewers": doing} | account), flush=True)
    return account


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except (IngestError, sqlite3.Error) as error:
        sys.exit(f"demo.viewers: {error}")
