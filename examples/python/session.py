"""Records one session with the outbox library, and waits for its result.

    STUDY_VIEWER=... STUDY_PASSWORD=... STUDY_AMQP_URL=amqp://localhost:5672/ \\
        python session.py question-1=2 question-2=unsure

Without STUDY_AMQP_URL the broker is that of `./dev run`.
"""

import asyncio
import os
import sqlite3
import sys
from contextlib import closing
from urllib.parse import quote, urlsplit
from uuid import UUID, uuid4

from study_viewer import Attempt, AttemptBatch, Outbox, Relay, RelaySettings, local_now


def attempt(answer: str) -> Attempt:
    """One answer as typed: the published id of the question, `=`, and the choice or `unsure`."""
    question, _, choice = answer.rpartition("=")
    return Attempt(
        question_pub_id=question,
        selected_choice=None if choice == "unsure" else int(choice),
        is_unsure=choice == "unsure",
        answered_at=local_now(),
    )


def record(outbox: Outbox, batch: AttemptBatch) -> None:
    """Records the batch in the same transaction as the viewer's own rows, so that both exist or
    neither.
    """
    with closing(sqlite3.connect(outbox.path)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS my_sessions (uuid TEXT PRIMARY KEY)")
        database.execute(
            "INSERT OR IGNORE INTO my_sessions VALUES (?)", (str(batch.client_session_uuid),)
        )
        outbox.record(database, batch)


async def main(answers: list[str]) -> None:
    viewer, password = os.environ["STUDY_VIEWER"], os.environ["STUDY_PASSWORD"]
    url = urlsplit(os.environ.get("STUDY_AMQP_URL") or os.environ["INGEST_AMQP_URL"])
    address = url.netloc.rpartition("@")[2]
    url = url._replace(netloc=f"{viewer}:{quote(password, safe='')}@{address}")
    session = UUID(os.environ.get("STUDY_SESSION") or str(uuid4()))

    with Outbox(os.environ.get("STUDY_OUTBOX", "viewer.db")) as outbox:
        if outbox.get(session) is None:
            batch = AttemptBatch(
                client_session_uuid=session, attempts=tuple(attempt(each) for each in answers)
            )
            record(outbox, batch)
        # The operator has created the results queue, because this login may not.
        settings = RelaySettings(declare_results_queue=False)
        async with Relay(outbox, url.geturl(), viewer, settings) as relay:
            entry = await relay.until_settled(session)
    assert entry.result is not None
    print(entry.result.model_dump_json(exclude_none=True))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
