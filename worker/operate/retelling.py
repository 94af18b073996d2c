"""What a viewer is told again after a correction: everything in it is as of now.

A correction replaces the result in the inbox as well, so that a redelivery gets the same.
"""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.ingest_result import Due, IngestResult
from schemas.words import Status
from worker.domain.records import Message
from worker.ingest import messages
from worker.store import progress, publications


async def due_now(
    connection: AsyncConnection, user_id: int, results: Sequence[IngestResult]
) -> list[tuple[Due, ...]]:
    """The due times of each result's questions as they are now, by the same published ids.

    A question that has no attempt left, or a published id that is gone, is left out.
    """
    pub_ids = {each.question_pub_id for result in results for each in result.due}
    behind = await publications.behind(connection, pub_ids)
    questions = {question_id for question_id, _ in behind.values()}
    stored = await progress.of_user(connection, user_id, questions) if questions else {}
    due_at = {
        pub_id: stored[question_id].progress.memory.due_at
        for pub_id, (question_id, _) in behind.items()
        if question_id in stored
    }
    return [
        tuple(
            each.model_copy(update={"due_at": due_at[each.question_pub_id]})
            for each in result.due
            if each.question_pub_id in due_at
        )
        for result in results
    ]


def again(told: IngestResult, viewer: str | None) -> list[Message]:
    """The message that tells the viewer. Empty if the viewer is unknown."""
    repeated = told.model_copy(update={"status": Status.ALREADY_INGESTED})
    return messages.result_for(viewer, None, repeated)
