"""Export and import of the log of attempts as JSON Lines.

Each line is one record: `export` (the first, with the version of the format), `topic`, `question`,
`batch` (an ingested session with all its attempts) or `explanation_requested`. Imported into an
empty database, they give the same inbox, sessions, attempts and progress.
"""

import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.domain.policy import Policy
from worker.domain.records import OnChange
from worker.errors import IngestError
from worker.operate.repair import rebuild
from worker.store import audit, content, principals
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.operate import archive as stored

VERSION: Final = 2
"""2 added the records `erasure`, and to attempts why a time was replaced, the offset with which it
was sent, and what corrections replaced."""
_READ: Final = (1, VERSION)

_LINES_AT_ONCE: Final = 200
_BYTES_AT_ONCE: Final = 4_000_000
"""The number of bytes in one transaction of an import."""
_ONE_CONTENT: Final = (
    "give both databases the same topics and questions with the same ids, then import again."
    " No batch was imported."
)
_ORDER: Final = ("export", "topic", "question", "erasure", "batch", "explanation_requested")


async def export(engine: AsyncEngine, user_id: int | None) -> AsyncIterator[str]:
    """The lines (without line ends) of the log of one user, or of all users if it is None.

    They show one moment, while workers continue to ingest. With all users, they include the
    tombstones of erased batches, so that those can't be ingested again after an import.
    """
    yield json.dumps({"record": "export", "version": VERSION, "user_id": user_id})
    async with transaction(engine, isolation="repeatable_read") as connection:
        async for line in stored.lines(connection, user_id):
            yield line


@dataclass(slots=True)
class Imported:
    """What an import added."""

    batches: int = 0
    attempts: int = 0
    known: int = 0
    """Batches that were already there. They stay as they were."""
    erased: int = 0
    """Those of them that were erased here, and not where the export is from."""
    users: set[int] = field(default_factory=set)


async def import_lines(
    engine: AsyncEngine,
    lines: Iterable[str],
    policy: Policy,
    by: By,
    on_change: OnChange = lambda *_: None,
) -> Imported:
    """Adds what is in the export and not yet in the database, and then updates all progress.

    If it is killed, it can be run again. If a line is not part of an export, it raises
    `IngestError` with the line's number. The groups of lines before it stay. It also raises
    `IngestError` if an id of a topic or a question stands for another one here, because the
    attempts would then count for the wrong question.
    """
    done = Imported()
    rebuilt = False
    for kind, last, some in _grouped(lines):
        if kind == "explanation_requested" and not rebuilt:
            rebuilt = await _rebuild(engine, done, policy, on_change)
        try:
            async with transaction(engine) as connection:
                match kind:
                    case "topic":
                        await _check_topics(connection, some)
                        if await content.is_ours(connection, "study_topics"):
                            await stored.add_topics(connection, some)
                    case "question":
                        await _check_questions(connection, some)
                        if await content.is_ours(connection, "study_questions"):
                            await stored.add_questions(connection, some)
                    case "erasure":
                        await stored.add_erasures(connection, some)
                    case "batch":
                        users = _users(some)
                        await principals.lock(connection, users)
                        uuids = await stored.add_batches(connection, some)
                        done.attempts += await stored.add_attempts(connection, some, uuids)
                        done.batches += len(uuids)
                        done.known += len(some) - len(uuids)
                        if len(uuids) < len(some):
                            done.erased += await stored.buried(connection, some)
                        done.users |= users
                    case "explanation_requested":
                        await stored.request_explanations(connection, some)
        except DBAPIError as error:
            problem = str(error.orig).splitlines()[0].rpartition(": ")[2].rstrip(".")
            raise IngestError(
                f"Among the {len(some)} lines up to line {last} is one that can't be imported:"
                f" {problem}."
            ) from None
    if not rebuilt:
        await _rebuild(engine, done, policy, on_change)
    async with transaction(engine) as connection:
        for table in ("study_topics", "study_questions"):
            if await content.is_ours(connection, table):
                await stored.advance_sequence(connection, table)
        effect = {"batches": done.batches, "attempts": done.attempts, "users": len(done.users)}
        await audit.record(connection, by, "import", "attempts", effect)
    return done


async def _check_topics(connection: AsyncConnection, some: list[str]) -> None:
    other = await stored.other_topic(connection, some)
    if other is not None:
        raise IngestError(f"Topic {other} is another owner's topic in this database", _ONE_CONTENT)


async def _check_questions(connection: AsyncConnection, some: list[str]) -> None:
    match await stored.other_question(connection, some):
        case question_id, str(pub_id), here:
            raise IngestError(
                f"{pub_id!r} is published as question {question_id} in the export, and as"
                f" question {here} in this database",
                _ONE_CONTENT,
            )
        case question_id, _, _:
            raise IngestError(
                f"Question {question_id} of the export is another question in this database",
                _ONE_CONTENT,
            )


async def _rebuild(
    engine: AsyncEngine, done: Imported, policy: Policy, on_change: OnChange
) -> bool:
    for user_id in sorted(done.users):
        await rebuild(engine, user_id, policy, on_change)
    return True


def _grouped(lines: Iterable[str]) -> Iterable[tuple[str, int, list[str]]]:
    """(record, number of the last line, lines) of consecutive lines of the same kind, in limited
    groups.
    """
    kind, some, size, number = "", list[str](), 0, 0
    for number, line in enumerate(lines, start=1):
        record = _read(line, number)["record"]
        if some and (record != kind or len(some) == _LINES_AT_ONCE or size > _BYTES_AT_ONCE):
            yield kind, number - 1, some
            some, size = [], 0
        kind = record
        if kind != "export":
            some.append(line)
            size += len(line)
    if some:
        yield kind, number, some


def _read(line: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("record") not in _ORDER:
        raise IngestError(f"Line {number} is not part of an export of study-ingest.")
    if (record["record"] == "export") is not (number == 1):
        raise IngestError(
            f"Line {number} begins another export, or the first line is missing",
            "import each file whole and by itself.",
        )
    if number == 1 and record.get("version") not in _READ:
        raise IngestError(
            f"The export's version is not {VERSION}",
            "use a newer study-ingest.",
        )
    return record


def _users(some: Iterable[str]) -> set[int]:
    found = (json.loads(line).get("user_id") for line in some)
    return {user_id for user_id in found if isinstance(user_id, int)}
