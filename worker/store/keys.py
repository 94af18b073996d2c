"""The lock of the answer keys of shared questions.

Whoever ingests answers to shared questions holds it together with others. Whoever corrects the key
of one waits for all of them, so that afterwards every answer judged by the old key is on record.
The key of a question that a user owns needs no lock of its own: that user's does the same.
"""

from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.store.driver import fetch

_KEY: Final = "hashtextextended('study-ingest keys', 0)"
_HOLD: Final = text(f"SELECT pg_advisory_xact_lock_shared({_KEY})")
_WAIT: Final = text(f"SELECT pg_advisory_xact_lock({_KEY})")


async def hold(connection: AsyncConnection) -> None:
    """Lets no key of a shared question change before the commit. Read the keys after it.

    Lock the principals first: who waits here for a correction must not be waited for there.
    """
    await fetch(connection, _HOLD, {})


async def wait(connection: AsyncConnection) -> None:
    """Waits until everybody who may have read an older key has committed, and holds up others until
    this transaction ends. It must hold no principal, and must not wait for one.
    """
    await fetch(connection, _WAIT, {})
