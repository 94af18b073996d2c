"""One simulated viewer: a real outbox in a file of its own, and the library's relay."""

import sqlite3
from collections.abc import Collection, Sequence
from pathlib import Path
from uuid import UUID

from schemas.attempt_batch import AttemptBatch
from viewer import Outbox, Relay, State


class Phone:
    """One simulated viewer, with a real outbox and its relay."""

    def __init__(self, folder: Path, amqp_url: str, viewer: str) -> None:
        self._path = folder / f"{viewer}.sqlite"
        self.outbox = Outbox(self._path)
        self.relay = Relay(self.outbox, amqp_url, viewer)
        self._recorded: list[AttemptBatch] = []

    def record(self, batch: AttemptBatch) -> None:
        """Records a session in a local transaction, as a viewer does when a quiz ends."""
        with sqlite3.connect(self._path) as connection:
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

    def lost(self) -> int:
        """How many recorded sessions never got a result."""
        entries = [self.outbox.get(batch.client_session_uuid) for batch in self._recorded]
        return sum(entry is None or entry.state is not State.SETTLED for entry in entries)

    def _forget_settlement(self, batch: AttemptBatch) -> None:
        # What a phone finds that died after the publish, or was restored from a backup.
        with sqlite3.connect(self._path) as connection:
            connection.execute(
                "UPDATE study_outbox SET state = 'pending', status = NULL, result = NULL,"
                " settled_at = NULL, confirmed_at = NULL WHERE client_session_uuid = ?",
                (str(batch.client_session_uuid),),
            )
        self.relay.wake()
