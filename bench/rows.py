"""The rows that a contender left, as digests. Equal digests mean equal rows.

It leaves out what no two runs can have in common: serial ids, versions, times, and what depends on
the order in which two batches of one user were committed (which session requested an explanation).
"""

from typing import Final

import asyncpg

from bench.errors import BenchError

_DIGESTED: Final = {
    "sessions": (
        "SELECT id, user_id, study_topic_id, question_ids, subject_distribution, status, cursor,"
        " source, client_session_uuid, correct_count, wrong_count, unsure_count, finished_at"
        " FROM study_quiz_sessions",
        "id",
    ),
    "attempts": (
        "SELECT user_id, study_question_id, study_topic_id, quiz_session_id, position,"
        " selected_choice, correct_choice, is_correct, outcome, answered_at, answered_at_sent"
        " FROM study_question_attempts",
        "quiz_session_id, position",
    ),
    "progress": (
        "SELECT user_id, study_question_id, study_topic_id, attempts_count, correct_count,"
        " wrong_count, unsure_count, correct_run, best_run, spaced_run, recent_unsure, lapse_count,"
        " first_correct_at, last_outcome, last_answered_at, pattern, stability, difficulty, due_at,"
        " scheduler, explanation_requested FROM study_question_progress",
        "user_id, study_question_id",
    ),
    "inbox": (
        "SELECT client_session_uuid, content_digest, user_id, told.sessions,"
        " (SELECT array_agg(each ->> 'question_pub_id') FROM"
        " jsonb_array_elements(summary -> 'due') AS each) AS due FROM ingest_inbox,"
        " LATERAL (SELECT jsonb_agg(each - '{newly_correct,recovered,relapsed}'::text[]"
        " ORDER BY each ->> 'topic_id') AS sessions"
        " FROM jsonb_array_elements(summary -> 'sessions') AS each) AS told",
        "client_session_uuid",
    ),
    "outbox": (
        "SELECT message_id, exchange, routing_key, type FROM outbox"
        " WHERE routing_key <> 'review.requested'",
        "message_id",
    ),
}

Digests = dict[str, str]


async def digests(connection: asyncpg.Connection) -> Digests:
    """The number of rows of each table, and a digest of them."""
    found = {}
    for name, (select, order) in _DIGESTED.items():
        row = await connection.fetchrow(
            f"SELECT count(*), md5(coalesce(string_agg(t::text, E'\\n' ORDER BY {order}), ''))"
            f" FROM ({select}) AS t"
        )
        found[name] = f"{row[0]}:{row[1]}"
    return found


async def check(connection: asyncpg.Connection, expected: Digests, who: str) -> None:
    """Raises `BenchError`, naming the tables, when the rows are not the expected ones."""
    found = await digests(connection)
    amiss = [
        f"{name} is {found[name]}, should be {expected[name]}"
        for name in expected
        if found[name] != expected[name]
    ]
    if amiss:
        raise BenchError(f"{who} left other rows: {'; '.join(amiss)}")
