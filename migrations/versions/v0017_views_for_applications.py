"""Views for the study application: what is due, progress by question and by topic, and the history.

They are an interface (docs/reading.md). The one notion of when a question is due stands in
`_DUE_FROM`. Publications get an index by their question, because each row has its published ids. It
has been made before, without holding anybody up (`worker.store.prepare`).

The index stays after a downgrade: ingest reads publications before questions, so dropping it after
another migration has locked questions would be a deadlock.

Questions are locked first, as the ingest transaction reads them first.
"""

from alembic import op

from migrations.content import is_ours, lock_questions

revision = "0017"
down_revision = "0016"

# A question is due at T once `due_at` less half a day is past: whoever sits down a little earlier
# each day sees the questions of that day.
_DUE_FROM = "(progress.due_at - interval '12 hours')"

# FSRS-6's forgetting curve with the default parameters: R = (1 + F * days / S) ^ -w20, where
# F = 0.9 ^ (-1 / w20) - 1. Half a day more rounds the days, where the older view cuts them.
_RETRIEVABILITY = """power(
        1 + (power(0.9::float8, -1 / 0.1542::float8) - 1)
            * greatest(0::float8, floor(
                date_part('epoch', now() - last_answered_at + interval '12 hours') / 86400))
            / stability,
        -0.1542::float8)"""

# As it was before, in numbers of any length, which take four times as long.
_BEFORE = """power(
        1 + (power(0.9::float8, -1 / 0.1542::float8) - 1)
            * greatest(0, floor(extract(epoch FROM now() - last_answered_at) / 86400))::float8
            / stability,
        -0.1542::float8)"""

_LIVE = """EXISTS (SELECT FROM published AS publication
        WHERE publication.kind = 'question' AND NOT publication.deleted
        AND publication.source_id = question.id)"""

_PUB_IDS = """ARRAY(SELECT publication.pub_id::text FROM published AS publication
        WHERE publication.kind = 'question' AND NOT publication.deleted
        AND publication.source_id = question.id AND question.deleted_at IS NULL
        ORDER BY publication.pub_id)"""

_COLUMNS = f"""
    progress.user_id,
    progress.study_question_id,
    coalesce(question.study_topic_id, progress.study_topic_id) AS study_topic_id,
    {_PUB_IDS} AS pub_ids,
    (SELECT told.title FROM study_question_texts AS told
        WHERE told.study_question_id = progress.study_question_id) AS title,
    {_DUE_FROM} AS due_from,
    {_RETRIEVABILITY} AS retrievability,
    progress.pattern,
    progress.last_outcome,
    progress.last_answered_at,
    progress.attempts_count,
    progress.correct_count,
    progress.wrong_count,
    progress.unsure_count,
    progress.lapse_count,
    progress.stability,
    progress.difficulty,
    progress.due_at"""

# The limit keeps the planner from reading all questions for the sake of one user.
_PROGRESS = f"""
CREATE VIEW study_progress AS
SELECT {_COLUMNS}
FROM study_question_progress AS progress
LEFT JOIN LATERAL (SELECT question.id, question.study_topic_id, question.deleted_at
    FROM study_questions AS question WHERE question.id = progress.study_question_id LIMIT 1)
    AS question ON true
"""

_DUE = f"""
CREATE VIEW study_due AS
SELECT {_COLUMNS}
FROM study_question_progress AS progress
JOIN study_questions AS question ON question.id = progress.study_question_id
WHERE {_DUE_FROM} <= now() AND question.deleted_at IS NULL AND {_LIVE}
"""

_HISTORY = """
CREATE VIEW study_history AS
SELECT
    attempt.user_id,
    attempt.study_question_id,
    attempt.answered_at,
    attempt.outcome,
    attempt.selected_choice,
    attempt.correct_choice,
    session.client_session_uuid,
    attempt.position
FROM study_question_attempts AS attempt
JOIN study_quiz_sessions AS session ON session.id = attempt.quiz_session_id
WHERE session.voided_at IS NULL
"""

_TOPICS = """
CREATE OR REPLACE VIEW study_topic_progress AS
SELECT
    progress.user_id,
    coalesce(question.study_topic_id, progress.study_topic_id) AS study_topic_id,
    count(*) AS questions_seen,
    count(*) FILTER (WHERE last_outcome = 'correct') AS questions_known,
    count(*) FILTER (WHERE pattern = 'mastered') AS questions_mastered,
    count(*) FILTER (WHERE {due}) AS questions_due,
    avg({retrievability}) AS mean_retrievability
FROM study_question_progress AS progress
LEFT JOIN {question}
GROUP BY 1, 2
"""

# With a limit for the same reason.
_QUESTION = f"""LATERAL (SELECT question.study_topic_id,
    {_DUE_FROM} <= now() AND question.deleted_at IS NULL AND {_LIVE} AS is_due
    FROM study_questions AS question WHERE question.id = progress.study_question_id LIMIT 1)
    AS question ON true"""

VIEWS = {
    "study_topic_progress": _TOPICS.format(
        due="is_due", question=_QUESTION, retrievability=_RETRIEVABILITY
    ),
    "study_progress": _PROGRESS,
    "study_due": _DUE,
    "study_history": _HISTORY,
}
"""The statements that make the views, which `migrations.beside` uses as well."""


def upgrade() -> None:
    lock_questions()
    if is_ours("published"):
        op.execute(
            "CREATE INDEX IF NOT EXISTS published_source_id_idx ON published (source_id)"
            " WHERE kind = 'question'"
        )
    for view in VIEWS.values():
        op.execute(view)


def downgrade() -> None:
    lock_questions()
    for view in ("study_history", "study_due", "study_progress"):
        op.execute(f"DROP VIEW {view}")
    question = "study_questions AS question ON question.id = progress.study_question_id"
    op.execute(_TOPICS.format(due="due_at <= now()", question=question, retrievability=_BEFORE))
