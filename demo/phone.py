"""One simulated viewer: a real outbox in a file of its own, and the library's relay."""

import sqlite3
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self
from uuid import UUID

from study_viewer import AttemptBatch, Outbox, Relay, RelaySettings, State, Status

_WITHOUT_GRANTS = RelaySettings(keep_progress=False)
"""Viewers without a grant get nobody's progress."""


class Phone:
    """One simulated viewer, with a real outbox and its relay."""

    def __init__(
        self, folder: Path, amqp_url: str, viewer: str, settings: RelaySettings | None = None
    ) -> None:
        self._path = folder / f"{viewer}.sqlite"
        self.outbox = Outbox(self._path)
        self.relay = Relay(self.outbox, amqp_url, viewer, settings or _WITHOUT_GRANTS)
        self._recorded: list[AttemptBatch] = []

    async def __aenter__(self) -> Self:
        await self.relay.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.relay.stop()
        self.outbox.close()

    def record(self, batch: AttemptBatch) -> None:
        """Records a session in a local transaction, as a viewer does at the end of a quiz."""
        with closing(sqlite3.connect(self._path)) as connection, connection:
            self.outbox.record(connection, batch)
        self._recorded.append(batch)
        self.relay.wake()

    async def play(self, batches: Sequence[AttemptBatch], twice: Collection[UUID]) -> None:
        """Records all sessions, waits for their results, and sends those in `twice` again."""
        for batch in batches:
            self.record(batch)
        await self.settled()
        for batch in batches:
            if batch.client_session_uuid in twice:
                self._forget_settlement(batch)
        await self.settled()

    async def settled(self) -> None:
        """Waits until every recorded session has its result."""
        for batch in self._recorded:
            await self.relay.until_settled(batch.client_session_uuid)

    async def all_settled(self) -> None:
        """Waits until every session in the outbox has its result, including those of earlier
        processes.
        """
        await self.relay.until(lambda: not self.outbox.unsettled(limit=1))

    def counts(self) -> Counter[Status | None]:
        """The number of sessions in the outbox by result. None means that there is no result
        yet.
        """
        with closing(sqlite3.connect(self._path)) as connection, connection:
            rows = connection.execute("SELECT status, count(*) FROM study_outbox GROUP BY status")
            return Counter({status and Status(status): count for status, count in rows})

    def attempts(self) -> int:
        """The number of attempts that the workers have accepted: those sent, without the skipped
        ones.
        """
        with closing(sqlite3.connect(self._path)) as connection, connection:
            (count,) = connection.execute(
                "SELECT sum(json_array_length(CAST(body AS TEXT), '$.attempts')"
                " - json_array_length(result, '$.skipped')) FROM study_outbox"
                " WHERE status <> 'rejected'"
            ).fetchone()
        return count or 0

    def lost(self) -> int:
        """The number of recorded sessions that never got a result."""
        entries = [self.outbox.get(batch.client_session_uuid) for batch in self._recorded]
        return sum(entry is None or entry.state is not State.SETTLED for entry in entries)

    def _forget_settlement(self, batch: AttemptBatch) -> None:
        # The state of a phone that died after the publish, or was restored from a backup.
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.execute(
                "UPDATE study_outbox SET state = 'pending', status = NULL, result = NULL,"
                " settled_at = NULL, confirmed_at = NULL WHERE client_session_uuid = ?",
                (str(batch.client_session_uuid),),
            )
        self.relay.wake()
