"""The floor: PostgreSQL itself writes the same final rows from its own tables.

One backend runs one INSERT ... SELECT for each group. It decides nothing and receives nothing, so
what remains is the cost of the rows themselves.
"""

import io
import time
from collections.abc import Sequence
from typing import Final

from bench import rows
from bench.race import Course, Lap
from bench.stage import Stage
from bench.workload import Batch

GROUP: Final = 50
"""The number of batches in one statement, which is the worker's default maximum."""

_COPIED: Final = {
    "sessions": (
        "id, user_id, study_topic_id, question_ids, subject_distribution, status, cursor, source,"
        " client_session_uuid, correct_count, wrong_count, unsure_count, finished_at,"
        " finalized_at, created_at, updated_at",
        "study_quiz_sessions",
        "JOIN numbered ON uuid = client_session_uuid",
    ),
    "attempts": (
        "user_id, study_question_id, study_topic_id, quiz_session_id, position, selected_choice,"
        " correct_choice, is_correct, outcome, answered_at, answered_at_sent",
        "study_question_attempts",
        "JOIN (SELECT id AS session_id, client_session_uuid FROM study_quiz_sessions) AS session"
        " ON session_id = quiz_session_id JOIN numbered ON uuid = client_session_uuid",
    ),
    "inbox": (
        "client_session_uuid, content_digest, user_id, received_at, summary",
        "ingest_inbox",
        "JOIN numbered ON uuid = client_session_uuid",
    ),
}
"""Columns, table, and the join that finds a row's batch."""

_PROGRESS: Final = (
    "user_id, study_question_id, study_topic_id, attempts_count, correct_count, wrong_count,"
    " unsure_count, correct_run, best_run, spaced_run, recent_unsure, lapse_count,"
    " first_correct_at, last_outcome, last_answered_at, pattern, stability, difficulty, due_at,"
    " scheduler, explanation_requested"
)
_OUTBOX: Final = "message_id, exchange, routing_key, type, headers, body, created_at"
_TABLES: Final = ("sessions", "attempts", "inbox", "progress", "outbox")


def _target(name: str) -> tuple[str, str]:
    if name == "progress":
        return "study_question_progress", _PROGRESS
    if name == "outbox":
        return "outbox", _OUTBOX
    columns, table, _ = _COPIED[name]
    return table, columns


def _insert(name: str) -> str:
    table, columns = _target(name)
    replace = ""
    if name == "progress":
        updated = [column.strip() for column in columns.split(",")][2:]
        replace = " ON CONFLICT (user_id, study_question_id) DO UPDATE SET " + ", ".join(
            f"{column} = excluded.{column}" for column in updated
        )
    select = f"SELECT {columns} FROM floor_{name} WHERE grp = $1"
    return f"INSERT INTO {table} ({columns}) {select}{replace}"


_WRITE: Final = (
    "WITH "
    + ", ".join(f"{name}_written AS ({_insert(name)})" for name in _TABLES[:-1])
    + " "
    + _insert(_TABLES[-1])
)


async def prepare(
    stage: Stage, reference: str, template: str, name: str, batches: Sequence[Batch]
) -> None:
    """Makes the database `name`: a copy of `template`, and beside its tables the rows that
    ingesting `batches` left in `reference`, each with the number of its group.
    """
    await stage.copy(name, template)
    source, target = await stage.connect(reference), await stage.connect(name)
    try:
        await source.execute("CREATE TABLE numbered (uuid uuid PRIMARY KEY, grp int)")
        await source.copy_records_to_table(
            "numbered", records=[(batch.uuid, n // GROUP) for n, batch in enumerate(batches)]
        )
        await source.execute("ANALYZE numbered")
        groups = (len(batches) - 1) // GROUP + 1
        selects = {
            each: f"SELECT {columns}, grp FROM {table} {join} ORDER BY grp"
            for each, (columns, table, join) in _COPIED.items()
        }
        # A question that comes in several groups is written in each, as the worker has to.
        selects["progress"] = (
            f"SELECT {_PROGRESS}, grp FROM study_question_progress JOIN (SELECT DISTINCT"
            " a.user_id AS u, a.study_question_id AS q, grp FROM study_question_attempts AS a"
            " JOIN study_quiz_sessions AS s ON s.id = a.quiz_session_id"
            " JOIN numbered ON uuid = s.client_session_uuid) AS touched"
            " ON user_id = u AND study_question_id = q ORDER BY grp"
        )
        selects["outbox"] = (
            f"SELECT {_OUTBOX}, (ntile({groups}) OVER (ORDER BY id) - 1)::int AS grp FROM outbox"
            " ORDER BY grp"
        )
        for each, select in selects.items():
            table, columns = _target(each)
            await target.execute(
                f"CREATE TABLE floor_{each} AS SELECT {columns}, 0 AS grp FROM {table} LIMIT 0"
            )
            buffer = io.BytesIO()
            await source.copy_from_query(select, output=buffer, format="binary")
            buffer.seek(0)
            await target.copy_to_table(f"floor_{each}", source=buffer, format="binary")
            await target.execute(f"CREATE INDEX ON floor_{each} (grp)")
    finally:
        await source.close()
        await target.close()
    await stage.settle(name)


async def run(stage: Stage, prepared: str, course: Course) -> Lap:
    """Writes every group, in a transaction for each."""
    await stage.copy("race", prepared)
    connection = await stage.connect("race")
    try:
        batches = [*course.warm_up, *course.timed]
        first = len(course.warm_up) // GROUP
        statement = await connection.prepare(_WRITE)
        for group in range(first):
            await statement.fetch(group)
        groups = range(first, (len(batches) - 1) // GROUP + 1)
        started = time.perf_counter()
        for group in groups:
            await statement.fetch(group)
        seconds = time.perf_counter() - started
        await rows.check(connection, course.expected, "floor")
    finally:
        await connection.close()
    return Lap(seconds, len(course.timed), 0.0, 0, {})
