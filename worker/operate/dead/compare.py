"""A reused uuid: the batch that was ingested held against the one in the dead letter."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.attempt_batch import AttemptBatch
from schemas.ingest_result import Skipped
from worker.domain.records import storable
from worker.store import inbox, publications
from worker.store.operate import compare as stored
from worker.store.operate.compare import StoredAnswer


class Discrepancy(NamedTuple):
    """What differs at one position: `field` of the attempt, or `attempt` where one is missing."""

    position: int
    field: str
    ingested: str
    in_letter: str


async def differences(connection: AsyncConnection, batch: AttemptBatch) -> list[Discrepancy] | None:
    """Each difference, in order; None when no batch with this uuid is known.

    Of an attempt that was skipped only the published id was kept, so only that is compared.
    """
    uuid = batch.client_session_uuid
    known = (await inbox.look(connection, [uuid], [])).known.get(uuid)
    if known is None or known.content_digest is None:
        return None
    answers = await stored.stored(connection, uuid)
    skipped = {each.position: each for each in known.told.skipped}
    behind = await publications.behind(
        connection, {attempt.question_pub_id for attempt in batch.attempts}
    )
    found: list[Discrepancy] = []
    for position in range(max([len(batch.attempts), *(n + 1 for n in (*answers, *skipped))])):
        attempt = batch.attempts[position] if position < len(batch.attempts) else None
        was = answers.get(position) or skipped.get(position)
        if attempt is None or was is None:
            found.append(
                Discrepancy(
                    position,
                    "attempt",
                    "none" if was is None else _whole(was),
                    "none" if attempt is None else f"on {attempt.question_pub_id}",
                )
            )
        elif isinstance(was, Skipped):
            if was.question_pub_id != attempt.question_pub_id:
                found.append(
                    Discrepancy(
                        position, "question_pub_id", was.question_pub_id, attempt.question_pub_id
                    )
                )
        else:
            question_id, _ = behind.get(attempt.question_pub_id, (None, None))
            pairs = (
                ("question", _question(was.question_id), _question(question_id)),
                ("selected_choice", str(was.selected_choice), str(attempt.selected_choice)),
                ("is_unsure", str(was.is_unsure), str(attempt.is_unsure)),
                ("answered_at", _at(was.sent_at), _at(storable(attempt.sent_at()))),
            )
            found += [Discrepancy(position, *pair) for pair in pairs if pair[1] != pair[2]]
    return found


def _whole(was: StoredAnswer | Skipped) -> str:
    if isinstance(was, Skipped):
        return f"on {was.question_pub_id} ({was.reason})"
    return f"on {_question(was.question_id)}"


def _question(question_id: int | None) -> str:
    return "an unknown question" if question_id is None else f"question {question_id}"


def _at(at: datetime | None) -> str:
    return "none" if at is None else at.isoformat()
