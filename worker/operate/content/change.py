"""`content withdraw`, `restore` and `touched`: changes of content, and what follows from them."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from worker.domain.records import OnChange
from worker.errors import ContentError
from worker.operate.content.writable import check_ours
from worker.operate.lines import shown
from worker.operate.repair import users as all_users
from worker.store import audit, principals, progress, versions
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.operate import content as stored


class Touched(NamedTuple):
    """What followed from a change of content."""

    moved: int
    """Rows of progress that are now under the topic of their question."""
    users: int
    """The users of those rows."""
    to_rescore: Sequence[int]
    """Questions with attempts that were scored by another correct choice."""


async def set_withdrawn(
    engine: AsyncEngine,
    pub_ids: Collection[str],
    by: By,
    *,
    withdrawn: bool,
    on_change: OnChange = lambda *_: None,
) -> int:
    """Withdraws publications, or publishes them again. Returns how many changed.

    Then the progress on their questions gets a new version, one user after another, so that each
    device learns of it. If that is interrupted, it can be run again.

    Raises `ContentError` for an unknown id, and where publications are the application's own. Then
    nothing changes.
    """
    word = "withdraw" if withdrawn else "restore"
    async with transaction(engine) as connection:
        await check_ours(connection, "published")
        _check_known(pub_ids, await stored.known(connection, pub_ids))
        changed = await stored.set_withdrawn(connection, pub_ids, withdrawn)
        if changed:
            effect = {"publications": changed}
            await audit.record(connection, by, f"content {word}", _subject(pub_ids), effect)
        questions = {*(await stored.behind(connection, pub_ids)).values()}
        users = await stored.answered_by(connection, questions)
    for user_id in users:
        await _renew(engine, user_id, questions, on_change)
    return changed


async def touched(
    engine: AsyncEngine,
    pub_ids: Collection[str],
    question_ids: Collection[int],
    by: By,
    on_change: OnChange = lambda *_: None,
) -> Touched:
    """Lets stored progress follow a change of content that the application made by itself.

    Progress on the questions gets a new version, because they may be published under other ids
    now. With neither published ids nor question ids that is all progress of everybody. It runs one
    transaction for each user, and may be run again. It never scores an attempt again: `to_rescore`
    names the questions for which somebody has to decide that.
    """
    wanted: set[int] | None = None
    async with transaction(engine) as connection:
        if pub_ids or question_ids:
            behind = await stored.behind(connection, pub_ids)
            _check_known(pub_ids, behind.keys())
            wanted = {*behind.values(), *question_ids}
        users = await stored.moved_for(connection, wanted)
        to_rescore = await stored.with_another_key(connection, wanted)
        answered_by = [] if wanted is None else await stored.answered_by(connection, wanted)
    moved = 0
    for user_id in users:
        async with transaction(engine) as connection:
            await principals.lock(connection, [user_id])
            moved += await stored.follow(connection, user_id, wanted)
    if wanted is None:
        async for user_id in all_users(engine):
            await _renew(engine, user_id, None, on_change)
    for user_id in answered_by:
        await _renew(engine, user_id, wanted, on_change)
    done = Touched(moved, len(users), to_rescore)
    if moved:
        async with transaction(engine) as connection:
            subject = "all questions" if wanted is None else f"{len(wanted)} questions"
            effect = {"progress": moved, "users": len(users)}
            await audit.record(connection, by, "content touched", subject, effect)
    return done


async def _renew(
    engine: AsyncEngine, user_id: int, question_ids: Collection[int] | None, on_change: OnChange
) -> None:
    async with transaction(engine) as connection:
        await principals.lock(connection, [user_id])
        mark = await versions.draw(connection)
        await progress.renew(connection, user_id, mark.version, question_ids)
    on_change(user_id, mark)


def _check_known(pub_ids: Collection[str], known: Collection[str]) -> None:
    for pub_id in pub_ids:
        if pub_id not in known:
            raise ContentError(
                f"No question is published as {shown(pub_id)}, so nothing was changed",
                "`study-ingest content list` shows what is published.",
            )


def _subject(pub_ids: Collection[str]) -> str:
    first = next(iter(pub_ids))
    return first if len(pub_ids) == 1 else f"{first} and {len(pub_ids) - 1} more"
