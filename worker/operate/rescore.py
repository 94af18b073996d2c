"""`rescore`: derives a question's outcomes again, after its answer key was corrected.

Stored attempts get the current correct choice, the progress is folded again, and each session that
changed gets new counts. Its viewer gets another result, with the status `already_ingested` and the
counts from the current log. Viewers know this message already. The inbox keeps the new result, so
that a redelivery does not send the old one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.ingest_result import IngestResult, SessionSummary
from schemas.words import Outcome
from worker.domain.history import Change, place
from worker.domain.policy import Policy
from worker.domain.records import Mark, Message, OnChange
from worker.domain.scoring import ScoredAttempt, outcome_of, was_right
from worker.domain.summary import summarize
from worker.errors import IngestError
from worker.ingest import messages
from worker.ingest.followups import FOLLOWUPS, Corrected
from worker.operate.repair import Difference, put_right
from worker.operate.retelling import again, due_now
from worker.store import (
    attempts,
    audit,
    content,
    inbox,
    keys,
    outbox,
    principals,
    progress,
    publications,
    versions,
)
from worker.store.audit import By
from worker.store.driver import write
from worker.store.engine import transaction
from worker.store.operate import rescore as stored
from worker.store.operate.rescore import Answer, Told

Progress = Callable[[int, int], None]
"""Told how many users are done, of how many."""


class RescoreCounts(NamedTuple):
    """What a rescore changed, for one principal or in total. All zero if there was nothing to
    change.
    """

    attempts: int = 0
    sessions: int = 0
    progress: int = 0
    told: int = 0


class Contribution(NamedTuple):
    """The effect of one session on one question."""

    outcomes: Sequence[Outcome]
    change: Change


async def published_as(engine: AsyncEngine, pub_id: str) -> int:
    """The id of the question behind a published id, withdrawn or not. Raises `IngestError`."""
    async with transaction(engine) as connection:
        behind = await publications.behind(connection, [pub_id])
    if pub_id not in behind:
        raise IngestError(f"No question is published as {pub_id!r}.")
    return behind[pub_id][0]


async def rescore(
    engine: AsyncEngine,
    question_id: int,
    correct_choice: int | None,
    policy: Policy,
    by: By,
    progress: Progress = lambda done, of: None,
    on_change: OnChange = lambda *_: None,
) -> RescoreCounts:
    """Scores all attempts on a question by `correct_choice`, or by the question's own key if it is
    None.

    It sets the question's correct choice if it differs. Then it runs one transaction for each
    principal, until no attempt on the question was judged by another key. If it is interrupted, it
    can be run again. Raises `IngestError` if there is no such question, or if its key is the
    application's to change.
    """
    total = RescoreCounts()
    async with transaction(engine) as connection:
        question = await stored.question(connection, question_id)
        if question is None:
            raise IngestError(f"There is no question {question_id}.")
        await _check_key(connection, question_id, correct_choice)
        if question.owner_id is None:
            # After this, every answer that was judged by the old key is on record.
            await keys.wait(connection)
            await _correct_shared(connection, question_id, correct_choice, by)
    if question.owner_id is not None:
        total = await _of_user(
            engine, question.owner_id, question_id, correct_choice, policy, by, on_change
        )
    done = 0
    while True:
        async with transaction(engine) as connection:
            user_ids = await stored.judged_otherwise(connection, question_id)
        if not user_ids:
            return total
        for number, user_id in enumerate(user_ids, start=done + 1):
            one = await _of_user(engine, user_id, question_id, None, policy, by, on_change)
            total = RescoreCounts(*(a + b for a, b in zip(total, one, strict=True)))
            progress(number, done + len(user_ids))
        done += len(user_ids)


async def _correct_shared(
    connection: AsyncConnection, question_id: int, correct_choice: int | None, by: By
) -> None:
    was = await stored.key(connection, question_id)
    if correct_choice is None or correct_choice == was:
        return
    await stored.correct(connection, question_id, correct_choice)
    effect = {"correct_choice": correct_choice, "question_had": was}
    await audit.record(connection, by, "rescore", f"question {question_id}", effect)


async def _of_user(
    engine: AsyncEngine,
    user_id: int,
    question_id: int,
    correct_choice: int | None,
    policy: Policy,
    by: By,
    on_change: OnChange,
) -> RescoreCounts:
    async with transaction(engine) as connection:
        await principals.lock(connection, [user_id])
        mark = await versions.draw(connection)
        done = await _rescore_one(
            connection, user_id, question_id, correct_choice, policy, by, mark
        )
    if done.progress:
        on_change(user_id, mark)
    return done


async def _check_key(
    connection: AsyncConnection, question_id: int, correct_choice: int | None
) -> None:
    if correct_choice is None or await content.is_ours(connection, "study_questions"):
        return
    if correct_choice != await stored.key(connection, question_id):
        raise IngestError(
            f"The key of question {question_id} is the application's, and is not {correct_choice}"
            " there",
            "change it there, and run `rescore` again.",
        )


async def _rescore_one(
    connection: AsyncConnection,
    user_id: int,
    question_id: int,
    correct_choice: int | None,
    policy: Policy,
    by: By,
    mark: Mark,
) -> RescoreCounts:
    was = await stored.key(connection, question_id)
    if was is None:  # the application has just deleted the question
        return RescoreCounts()
    key = was if correct_choice is None else correct_choice
    if key != was:
        await stored.correct(connection, question_id, key)
    scored = _scored(await stored.answers(connection, user_id, question_id), key)
    if not scored and key == was:
        return RescoreCounts()
    await stored.rescore(connection, key, scored)
    changed = await put_right(connection, user_id, policy, mark, [question_id])
    # A history that changes needs a new version, even if it gives the same progress.
    await progress.renew(connection, user_id, mark.version, [question_id])
    sessions = sorted({answer.quiz_session_id for answer in scored})
    results = await _results(connection, user_id, await stored.told(connection, sessions), mark)
    jobs = _jobs(changed, scored, policy)
    outgoing = [message for told, viewer in results for message in again(told, viewer)]
    kept = {
        told.client_session_uuid: told.model_dump_json(exclude_none=True) for told, _ in results
    }
    await inbox.retell(connection, kept)
    await write(connection, outbox.recording([*jobs, *outgoing]))
    effect = RescoreCounts(len(scored), len(sessions), len(changed), len(outgoing))
    await audit.record(
        connection,
        by,
        "rescore",
        f"question {question_id}, user {user_id}",
        {"correct_choice": key, "question_had": was} | effect._asdict(),
    )
    return effect


def _scored(answers: Sequence[Answer], key: int) -> list[Answer]:
    """The answers whose outcome the key changes, with their new outcomes."""
    scored = []
    for answer in answers:
        outcome = outcome_of(answer.selected_choice, key, answer.outcome is Outcome.UNSURE)
        assert outcome is not None, "attempts without an answer are not stored"
        if answer.correct_choice != key:
            is_correct = was_right(answer.selected_choice, key)
            scored.append(answer._replace(outcome=outcome, is_correct=is_correct))
    return scored


async def _results(
    connection: AsyncConnection, user_id: int, told: Sequence[Told], mark: Mark
) -> list[tuple[IngestResult, str | None]]:
    """The current result of each batch, and the viewer that gets it."""
    questions = {each for batch in told for ids in batch.questions.values() for each in ids}
    histories = await attempts.histories(connection, {(user_id, each) for each in questions})
    contributions = {
        question_id: _contributions(history) for (_, question_id), history in histories.items()
    }
    results = [_as_of_now(batch, contributions) for batch in told]
    due = await due_now(connection, user_id, results)
    changed = messages.progress_mark(user_id, mark)
    return [
        (result.model_copy(update={"due": now, "progress": changed}), batch.viewer)
        for result, now, batch in zip(results, due, told, strict=True)
    ]


def _as_of_now(
    told: Told, contributions: Mapping[int, Mapping[UUID, Contribution]]
) -> IngestResult:
    def summary(session: SessionSummary) -> SessionSummary:
        question_ids = told.questions.get(session.quiz_session_id)
        if question_ids is None:
            return session
        uuid = told.result.client_session_uuid
        mine = [contributions[question_id][uuid] for question_id in question_ids]
        outcomes = [outcome for each in mine for outcome in each.outcomes]
        return session.model_copy(
            update=summarize(outcomes, [each.change for each in mine])._asdict()
        )

    return told.result.model_copy(
        update={"sessions": tuple(summary(session) for session in told.result.sessions)}
    )


def _contributions(history: Sequence[ScoredAttempt]) -> dict[UUID, Contribution]:
    """The effect of each session on one question, in one pass over all of its attempts."""
    sessions: dict[UUID, list[ScoredAttempt]] = {}
    for attempt in history:
        sessions.setdefault(attempt.client_session_uuid, []).append(attempt)
    if not sessions:
        return {}
    changes = place(None, (), [*sessions.values()]).changes
    return {
        uuid: Contribution([attempt.outcome for attempt in attempts], change)
        for (uuid, attempts), change in zip(sessions.items(), changes, strict=True)
    }


def _jobs(changed: Sequence[Difference], scored: Sequence[Answer], policy: Policy) -> list[Message]:
    """The jobs for a question that turns out to be wrong and has not been asked about before."""
    wrong = [answer for answer in scored if answer.outcome is not Outcome.CORRECT]
    corrected = [
        Corrected(
            each.user_id,
            each.question_id,
            each.expected.topic_id,
            wrong[-1].quiz_session_id,
            wrong[-1].outcome,
        )
        for each in changed
        if wrong
        and each.expected is not None
        and each.expected.explanation_requested
        and not (each.stored is not None and each.stored.explanation_requested)
    ]
    return [
        job
        for each in corrected
        for followup in FOLLOWUPS
        if policy.wants(followup.kind.routing_key)
        for job in followup.on_rescore(each)
    ]
