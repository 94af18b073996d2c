"""Devices that share nothing: a process and a file for each, and what each file says at the end."""

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from study_viewer import AttemptBatch
from worker.errors import IngestError
from worker.store.engine import transaction

_STOP_SECONDS: Final = 30.0

_STORED: Final = text(
    "SELECT published.pub_id, progress.due_at FROM study_question_progress AS progress"
    " JOIN published ON published.source_id = progress.study_question_id"
    " AND published.kind = 'question' AND NOT published.deleted WHERE progress.user_id = :user_id"
)


class Device:
    """A device that runs. `running` makes it."""

    def __init__(self, path: Path, process: asyncio.subprocess.Process) -> None:
        self.path = path
        self._process = process

    async def record(self, batch: AttemptBatch) -> None:
        """Has it record a session."""
        await self._write(batch.model_dump_json())

    async def settled(self) -> None:
        """Waits until it has the results of all sessions."""
        await self._told("settle")

    async def current(self) -> None:
        """Has it ask for the progress of its users, and waits until it has it."""
        await self._told("ask")

    async def end(self) -> None:
        """Ends it. Raises `IngestError` if it did not end well."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if await asyncio.wait_for(self._process.wait(), _STOP_SECONDS):
            raise IngestError(f"The device of {self.path} ended with {self._process.returncode}.")

    async def _told(self, word: str) -> None:
        await self._write(word)
        assert self._process.stdout is not None
        if (await self._process.stdout.readline()).decode().strip() != word:
            raise IngestError(f"The device of {self.path} ended before it could {word}.")

    async def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()


@asynccontextmanager
async def running(
    path: Path, url: str, viewer: str, users: Sequence[int] = ()
) -> AsyncIterator[Device]:
    """A device with its own file at `path`, and the login in `url`. One of several users names
    them.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "demo.device", str(path), url, viewer, *map(str, users)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Device(path, process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def due_dates(engine: AsyncEngine, user_id: int) -> dict[str, datetime]:
    """When each published question of the user is due, as the server has it."""
    async with transaction(engine) as connection:
        rows = await connection.execute(_STORED, {"user_id": user_id})
        return {row.pub_id: row.due_at for row in rows}


def wrong(path: Path, user_id: int, stored: Mapping[str, datetime]) -> int:
    """How many due dates in the file of a device are wrong, missing or too many. It reads the file
    by itself, without the library.
    """
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT pub_ids, due_at FROM study_progress WHERE user_id = ?", (user_id,)
        ).fetchall()
    held = {
        pub_id: datetime.fromisoformat(due_at)
        for pub_ids, due_at in rows
        for pub_id in json.loads(pub_ids)
    }
    return sum(held.get(pub_id) != stored.get(pub_id) for pub_id in held.keys() | stored.keys())


def unsettled(path: Path) -> int:
    """How many sessions in the file of a device have no result."""
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute(
            "SELECT count(*) FROM study_outbox WHERE state <> 'settled'"
        ).fetchone()
    return int(count)
