"""One viewer, as a process that can be killed: `python -m chaos.phone '<json>'`.

It plays sessions and records each in one transaction with its batch, through the viewers' library,
whose relay does the rest. It reads commands from standard input: `clock <seconds>` sets its clock
ahead, `quiet` ends the playing, and `ask` makes it ask for the progress of its users. The end of
the input ends the process.
"""

import asyncio
import json
import logging
import random
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from chaos import bank
from chaos.evidence import PLAYED_TABLE
from chaos.quiz import session
from study_viewer import AttemptBatch, Outbox, Relay, RelaySettings

_real_time = time.time


@dataclass(frozen=True, slots=True)
class Plan:
    """The arguments of a phone, which stay the same after it is killed.

    `began` and `seconds` say when the run began and how long it lasts. `rate` is the number of
    sessions per second. `impatience` is the number of seconds after a confirm until a batch without
    a result is sent again.
    """

    viewer: str
    outbox: str
    bank: str
    url: str
    seed: int
    users: list[int]
    began: float
    seconds: float
    rate: float
    impatience: float

    def as_argument(self) -> str:
        """The plan as a command-line argument."""
        return json.dumps(asdict(self))


def quiet_mark(outbox: Path) -> Path:
    """The file that a phone creates after it has read `quiet` and records nothing more."""
    return outbox.with_suffix(".quiet")


def current_mark(outbox: Path) -> Path:
    """The file that a phone creates after it has read `ask` and has the answers."""
    return outbox.with_suffix(".current")


class Phone:
    """The user and the app."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._bank = bank.load(Path(plan.bank))
        self._outbox = Outbox(plan.outbox)
        self._file = sqlite3.connect(plan.outbox, timeout=30, isolation_level=None)
        self._file.execute(PLAYED_TABLE)
        (played,) = self._file.execute("SELECT count(*) FROM quiz").fetchone()
        # A phone that was killed goes on with other sessions, not with the same ones again.
        self._rng = random.Random(f"{plan.seed}/{plan.viewer}/{played}")
        self._skew = 0.0
        self._playing = True

    async def run(self) -> None:
        """Plays until it reads `quiet`, and relays until the input ends."""
        plan = self._plan
        settings = RelaySettings(
            connect_timeout=5,
            answer_timeout=5,
            publish_timeout=5,
            heartbeat=2,
            retry_delay_min=0.2,
            retry_delay_max=2,
            poll_interval=0.5,
            result_timeout=plan.impatience,
            progress_patience=2,
            progress_patience_max=5,
            progress_interval=10,
            check_patience=2,
            check_patience_max=5,
        )
        # A fault of ours must end the process, because it would hold the lock of the file.
        async with (
            Relay(self._outbox, plan.url, plan.viewer, settings, users=plan.users) as relay,
            asyncio.TaskGroup() as tasks,
        ):
            playing = tasks.create_task(self._play(relay.wake))
            await self._obey(relay)
            playing.cancel()
        self._file.close()
        self._outbox.close()

    async def _play(self, wake: Callable[[], None]) -> None:
        plan = self._plan
        while self._playing:
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) / plan.rate)
            passed = min(1.0, (_real_time() - plan.began) / plan.seconds)
            uuid = UUID(int=self._rng.getrandbits(128), version=4)
            attempts = session(self._rng, self._bank, plan.users, passed, self._skew)
            if self._playing:
                self._record(uuid, attempts)
                wake()

    def _record(self, uuid: UUID, attempts: list[dict[str, Any]]) -> None:
        batch = AttemptBatch.model_validate({"client_session_uuid": uuid, "attempts": attempts})
        with closing(self._file.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            cursor.execute("INSERT INTO quiz VALUES (?, ?)", (str(uuid), json.dumps(attempts)))
            self._outbox.record(self._file, batch)
            cursor.execute("COMMIT")

    async def _obey(self, relay: Relay) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            match line.decode().split():
                case ["clock", seconds]:
                    self._set_clock(float(seconds))
                case ["quiet"]:
                    self._playing = False
                    quiet_mark(Path(self._plan.outbox)).touch()
                case ["ask"]:
                    await relay.until_current()
                    current_mark(Path(self._plan.outbox)).touch()

    def _set_clock(self, ahead: float) -> None:
        """Sets the clock of the whole process, including the library."""
        self._skew = ahead
        time.time = lambda: _real_time() + ahead


def main() -> None:
    """Runs the phone with the plan in the first argument."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    phone = Phone(Plan(**json.loads(sys.argv[1])))
    with suppress(KeyboardInterrupt):
        asyncio.run(phone.run())


if __name__ == "__main__":
    main()
