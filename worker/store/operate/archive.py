"""Export and import of the log, as JSON that PostgreSQL itself writes and reads.

A batch is one object: its inbox row, its quiz sessions and their attempts. Progress is not
included, because it can be computed from the attempts.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.store.tables import METADATA

_STREAMED_AT_ONCE: Final = 200
"""The number of batches fetched in one round trip. Each has at most 1000 attempts."""

# An export may take as long as its reader. The timeouts are for work that others wait for.
_PATIENT: Final = (
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
    "SET TRANSACTION READ ONLY",
)

_OF_USER: Final = "(CAST(:user_id AS bigint) IS NULL OR {}.user_id = :user_id)"

_ASKED: Final = (
    "SELECT attempt.study_question_id FROM ours.study_quiz_sessions AS session"
    " JOIN ours.study_question_attempts AS attempt ON attempt.quiz_session_id = session.id WHERE "
    + _OF_USER.format("session")
)

_TOPICS: Final = text(
    "SELECT CAST(json_build_object('record', 'topic', 'id', id, 'user_id', user_id,"
    " 'name', name) AS text) FROM ours.study_topics WHERE id IN"
    f" (SELECT study_topic_id FROM ours.study_questions WHERE id IN ({_ASKED}) UNION"
    " SELECT study_topic_id FROM ours.study_quiz_sessions AS session"
    f" WHERE {_OF_USER.format('session')}) ORDER BY id"
)

# The published ids tell an import whether a question there is the same one.
_QUESTIONS: Final = text(
    "SELECT CAST(json_build_object('record', 'question', 'id', question.id,"
    " 'user_id', question.user_id, 'study_topic_id', question.study_topic_id,"
    " 'correct_choice', question.correct_choice, 'deleted_at', question.deleted_at,"
    " 'pub_ids', coalesce(publication.pub_ids, '[]')) AS text)"
    " FROM ours.study_questions AS question LEFT JOIN"
    " (SELECT source_id, json_agg(pub_id ORDER BY pub_id) AS pub_ids FROM ours.published"
    f" WHERE kind = 'question' AND source_id IN ({_ASKED}) GROUP BY source_id) AS publication"
    f" ON publication.source_id = question.id WHERE question.id IN ({_ASKED}) ORDER BY question.id"
)


_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]


def _columns(table: str, *without: str) -> dict[str, str]:
    """Name and type of the columns of a table of ours: a new column is exported by itself."""
    return {
        column.name: column.type.compile(dialect=_DIALECT)
        for column in METADATA.tables[table].columns
        if column.name not in without
    }


_ATTEMPT_COLUMNS: Final = _columns("study_question_attempts", "id", "user_id", "quiz_session_id")
_SESSION_COLUMNS: Final = _columns("study_quiz_sessions", "user_id", "client_session_uuid")


def _pairs(alias: str, columns: Collection[str]) -> str:
    return ", ".join(f"'{name}', {alias}.{name}" for name in columns)


# In the order of the key, so that the first row arrives at once, however many there are.
_BATCHES: Final = text(
    "SELECT CAST(json_build_object('record', 'batch',"
    " 'client_session_uuid', inbox.client_session_uuid, 'user_id', inbox.user_id,"
    " 'viewer', inbox.viewer, 'received_at', inbox.received_at, 'erased_at', inbox.erased_at,"
    " 'content_digest', encode(inbox.content_digest, 'hex'), 'summary', inbox.summary,"
    " 'sessions', coalesce((SELECT json_agg(json_build_object("
    f"{_pairs('session', _SESSION_COLUMNS)}, 'attempts', (SELECT json_agg(json_build_object("
    f"{_pairs('attempt', _ATTEMPT_COLUMNS)}) ORDER BY attempt.position)"
    " FROM ours.study_question_attempts AS attempt WHERE attempt.quiz_session_id = session.id))"
    " ORDER BY session.study_topic_id) FROM ours.study_quiz_sessions AS session"
    " WHERE session.client_session_uuid = inbox.client_session_uuid), '[]')) AS text)"
    f" FROM ours.ingest_inbox AS inbox WHERE {_OF_USER.format('inbox')}"
    " ORDER BY inbox.client_session_uuid"
)

_ERASURES: Final = text(
    "SELECT CAST(json_build_object('record', 'erasure', 'user_id', user_id,"
    " 'erased_at', erased_at) AS text) FROM ours.ingest_erasures AS erasure"
    f" WHERE {_OF_USER.format('erasure')} ORDER BY user_id"
)

_REQUESTED: Final = text(
    "SELECT CAST(json_build_object('record', 'explanation_requested', 'user_id', user_id,"
    " 'study_question_id', study_question_id) AS text) FROM ours.study_question_progress AS"
    " progress"
    f" WHERE explanation_requested AND {_OF_USER.format('progress')}"
    " ORDER BY user_id, study_question_id"
)


def _records(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns.items())


_LINES: Final = "jsonb_to_recordset(CAST(:lines AS jsonb))"

_ADD_TOPICS: Final = text(
    f"INSERT INTO ours.study_topics (id, user_id, name) SELECT id, user_id, name FROM {_LINES}"
    " AS line (id bigint, user_id bigint, name text) ON CONFLICT (id) DO NOTHING"
)

_ADD_QUESTIONS: Final = text(
    "INSERT INTO ours.study_questions (id, user_id, study_topic_id, correct_choice, deleted_at)"
    f" SELECT id, user_id, study_topic_id, correct_choice, deleted_at FROM {_LINES}"
    " AS line (id bigint, user_id bigint, study_topic_id bigint, correct_choice integer,"
    " deleted_at timestamptz) ON CONFLICT (id) DO NOTHING"
)

_OTHER_TOPIC: Final = text(
    f"SELECT line.id FROM {_LINES} AS line (id bigint, user_id bigint)"
    " JOIN ours.study_topics AS topic ON topic.id = line.id"
    " WHERE topic.user_id IS DISTINCT FROM line.user_id ORDER BY line.id LIMIT 1"
)

# One question has one owner and one id, and at least one published id in common with itself.
_OTHER_QUESTION: Final = text(
    "WITH line AS MATERIALIZED (SELECT id, user_id, coalesce(pub_ids, '{}') AS pub_ids"
    f" FROM {_LINES} AS line (id bigint, user_id bigint, pub_ids text[])),"
    " here AS (SELECT line.id, elsewhere.pub_id, elsewhere.source_id,"
    " question.user_id IS DISTINCT FROM line.user_id AND question.id IS NOT NULL AS other_owner,"
    " known.pub_ids IS NOT NULL AND line.pub_ids <> '{}' AND NOT known.pub_ids && line.pub_ids"
    " AS other_pub_ids"
    " FROM line LEFT JOIN ours.study_questions AS question ON question.id = line.id"
    " LEFT JOIN LATERAL (SELECT array_agg(CAST(pub_id AS text)) AS pub_ids FROM ours.published"
    " WHERE kind = 'question' AND source_id = line.id) AS known ON true"
    " LEFT JOIN LATERAL (SELECT pub_id, source_id FROM ours.published WHERE kind = 'question'"
    " AND pub_id = ANY(line.pub_ids) AND source_id <> line.id ORDER BY pub_id LIMIT 1)"
    " AS elsewhere ON true)"
    " SELECT id, pub_id, source_id FROM here"
    " WHERE other_owner OR other_pub_ids OR pub_id IS NOT NULL ORDER BY id LIMIT 1"
)

# In the order of the uuids, like ingest.
_ADD_BATCHES: Final = text(
    "INSERT INTO ours.ingest_inbox (client_session_uuid, content_digest, user_id, viewer,"
    " received_at, erased_at, summary) SELECT client_session_uuid,"
    " decode(content_digest, 'hex'), user_id, viewer, received_at, erased_at, summary"
    f" FROM {_LINES}"
    " AS line (client_session_uuid uuid, content_digest text, user_id bigint, viewer text,"
    " received_at timestamptz, erased_at timestamptz, summary jsonb) ORDER BY client_session_uuid"
    " ON CONFLICT (client_session_uuid) DO NOTHING RETURNING client_session_uuid"
)

_ADD_ERASURES: Final = text(
    "INSERT INTO ours.ingest_erasures (user_id, erased_at) SELECT user_id, erased_at"
    f" FROM {_LINES} AS line (user_id bigint, erased_at timestamptz) ON CONFLICT (user_id)"
    " DO UPDATE SET erased_at = greatest(ingest_erasures.erased_at, excluded.erased_at)"
)

_NEW_SESSIONS: Final = (
    f"{_LINES} AS batch (client_session_uuid uuid, user_id bigint, sessions jsonb)"
    " CROSS JOIN LATERAL jsonb_to_recordset(batch.sessions)"
    f" AS session ({_records(_SESSION_COLUMNS)}, attempts jsonb)"
)

_ADD_SESSIONS: Final = text(
    "INSERT INTO ours.study_quiz_sessions (client_session_uuid, user_id,"
    f" {', '.join(_SESSION_COLUMNS)}) SELECT batch.client_session_uuid, batch.user_id,"
    f" {', '.join(f'session.{name}' for name in _SESSION_COLUMNS)} FROM {_NEW_SESSIONS}"
    " WHERE batch.client_session_uuid = ANY(CAST(:uuids AS uuid[]))"
)

_ADD_ATTEMPTS: Final = text(
    "INSERT INTO ours.study_question_attempts (user_id, quiz_session_id,"
    f" {', '.join(_ATTEMPT_COLUMNS)})"
    " SELECT batch.user_id, session.id,"
    f" {', '.join(f'attempt.{name}' for name in _ATTEMPT_COLUMNS)} FROM {_NEW_SESSIONS}"
    " CROSS JOIN LATERAL jsonb_to_recordset(session.attempts)"
    f" AS attempt ({_records(_ATTEMPT_COLUMNS)})"
    " WHERE batch.client_session_uuid = ANY(CAST(:uuids AS uuid[]))"
)

_REQUEST: Final = text(
    "UPDATE ours.study_question_progress AS progress SET explanation_requested = true"
    f" FROM {_LINES} AS line (user_id bigint, study_question_id bigint)"
    " WHERE progress.user_id = line.user_id"
    " AND progress.study_question_id = line.study_question_id AND NOT explanation_requested"
)

_BURIED: Final = text(
    f"SELECT count(*) FROM {_LINES} AS line (client_session_uuid uuid, erased_at timestamptz)"
    " JOIN ours.ingest_inbox AS here USING (client_session_uuid)"
    " WHERE here.erased_at IS NOT NULL AND line.erased_at IS NULL"
)

# An id beyond the range of the sequence comes from a cell that has another range.
_SEQUENCES: Final = {
    table: text(
        "SELECT setval(sequence, greatest(nextval(sequence), (SELECT max(id)"
        f" FROM ours.{table} WHERE id <= (SELECT seqmax FROM pg_sequence"
        " WHERE seqrelid = CAST(sequence AS regclass)))))"
        f" FROM pg_get_serial_sequence('ours.{table}', 'id') AS sequence"
    )
    for table in ("study_topics", "study_questions")
}


async def lines(connection: AsyncConnection, user_id: int | None) -> AsyncIterator[str]:
    """The export of one user, or of all if it is None, line by line in constant memory.

    It must be the first use of a REPEATABLE READ transaction of its own.
    """
    for statement in _PATIENT:
        await connection.execute(text(statement))
    for query in (_TOPICS, _QUESTIONS, _ERASURES, _BATCHES, _REQUESTED):
        async with connection.stream(
            query, {"user_id": user_id}, execution_options={"yield_per": _STREAMED_AT_ONCE}
        ) as rows:
            async for (line,) in rows:
                yield line


async def add_topics(connection: AsyncConnection, some: Sequence[str]) -> None:
    """Adds topics that are missing. Existing topics belong to the study application."""
    await connection.execute(_ADD_TOPICS, _array(some))


async def add_questions(connection: AsyncConnection, some: Sequence[str]) -> None:
    """Adds questions that are missing."""
    await connection.execute(_ADD_QUESTIONS, _array(some))


async def add_erasures(connection: AsyncConnection, some: Sequence[str]) -> None:
    """Adds the erased users. If a user is there already, the later time counts."""
    await connection.execute(_ADD_ERASURES, _array(some))


async def other_topic(connection: AsyncConnection, some: Sequence[str]) -> int | None:
    """The first id among these topics under which another owner's topic is stored here."""
    found: int | None = await connection.scalar(_OTHER_TOPIC, _array(some))
    return found


async def other_question(
    connection: AsyncConnection, some: Sequence[str]
) -> tuple[int, str | None, int | None] | None:
    """The first id among these questions under which another question is stored here, or which is
    published here under another id: then with the published id and that other id.
    """
    row = (await connection.execute(_OTHER_QUESTION, _array(some))).one_or_none()
    return None if row is None else (row.id, row.pub_id, row.source_id)


async def add_batches(connection: AsyncConnection, some: Sequence[str]) -> list[UUID]:
    """Adds the inbox rows of batches whose uuid is free, and returns those uuids."""
    return list((await connection.scalars(_ADD_BATCHES, _array(some))).all())


async def add_attempts(
    connection: AsyncConnection, some: Sequence[str], uuids: Sequence[UUID]
) -> int:
    """Adds the sessions and attempts of the batches with these uuids. Returns the number of
    attempts.

    Hold the locks of their principals.
    """
    values = _array(some) | {"uuids": list(uuids)}
    await connection.execute(_ADD_SESSIONS, values)
    return (await connection.execute(_ADD_ATTEMPTS, values)).rowcount


async def buried(connection: AsyncConnection, some: Sequence[str]) -> int:
    """The number of these batches that were erased here, and not where the export is from."""
    return int(await connection.scalar(_BURIED, _array(some)) or 0)


async def request_explanations(connection: AsyncConnection, some: Sequence[str]) -> None:
    """Marks progress rows for which an explanation was requested."""
    await connection.execute(_REQUEST, _array(some))


async def advance_sequence(connection: AsyncConnection, table: str) -> None:
    """Advances the sequence of `study_topics` or `study_questions`, so that new rows get ids beyond
    the added ones that are in its range.
    """
    await connection.execute(_SEQUENCES[table])


def _array(some: Sequence[str]) -> dict[str, object]:
    return {"lines": f"[{','.join(some)}]"}
