"""The views for the study application cost less. Their columns stay.

- `study_progress` looks a question up only for the columns that are asked for, and so a query that
  sorts by progress alone looks up only the rows that it returns.
- `study_topic_progress` reads the questions of a user all at once. It is one subquery for each
  user, so it can also be joined with a list of users.
- The days since the last answer are counted without arithmetic with numbers of any length.

Views are only read by the application, so ingest does not notice.
"""

from alembic import op

from migrations.content import lock_questions
from migrations.versions.v0017_views_for_applications import VIEWS

revision = "0021"
down_revision = "0020"

# A question is due at T once `due_at` less half a day is past: whoever sits down a little earlier
# each day sees the questions of that day.
_DUE_FROM = "(progress.due_at - interval '12 hours')"

# The same without arithmetic on a column, so that statistics tell how many questions are due.
_IS_DUE = "progress.due_at <= now() + interval '12 hours'"

# FSRS-6's forgetting curve with the default parameters: R = (1 + F * days / S) ^ -w20, where
# F = 0.9 ^ (-1 / w20) - 1. Half a day more rounds the days. A difference of two times is in days.
_RETRIEVABILITY = """power(
        1 + (power(0.9::float8, -1 / 0.1542::float8) - 1)
            * greatest(0::float8,
                date_part('day', (now() + interval '12 hours') - progress.last_answered_at))
            / progress.stability,
        -0.1542::float8)"""

_LIVE = """publication.kind = 'question' AND NOT publication.deleted
        AND publication.source_id"""

_COLUMNS = f"""
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

_PROGRESS = f"""
SELECT
    progress.user_id,
    progress.study_question_id,
    coalesce(
        (SELECT question.study_topic_id FROM study_questions AS question
            WHERE question.id = progress.study_question_id),
        progress.study_topic_id) AS study_topic_id,
    ARRAY(SELECT publication.pub_id::text FROM published AS publication
        JOIN study_questions AS question ON question.id = publication.source_id
        WHERE {_LIVE} = progress.study_question_id AND question.deleted_at IS NULL
        ORDER BY publication.pub_id) AS pub_ids,
    {_COLUMNS}
FROM study_question_progress AS progress
"""

_DUE = f"""
SELECT
    progress.user_id,
    progress.study_question_id,
    coalesce(question.study_topic_id, progress.study_topic_id) AS study_topic_id,
    ARRAY(SELECT publication.pub_id::text FROM published AS publication
        WHERE {_LIVE} = question.id
        ORDER BY publication.pub_id) AS pub_ids,
    {_COLUMNS}
FROM study_question_progress AS progress
JOIN study_questions AS question ON question.id = progress.study_question_id
WHERE {_IS_DUE} AND question.deleted_at IS NULL
    AND EXISTS (SELECT FROM published AS publication WHERE {_LIVE} = question.id)
"""

_OWN = "study_question_progress AS own WHERE own.user_id = known.user_id"

# A full join of progress with the questions of that very progress is a left join, for which the
# planner never compares each row with each row, however few rows it expects. And for a subquery
# with a limit it never reads all publications, as it may for EXISTS.
_TOPICS = f"""
SELECT known.user_id, topic.*
FROM (SELECT DISTINCT user_id FROM study_question_progress) AS known
CROSS JOIN LATERAL (
    SELECT
        coalesce(question.study_topic_id, progress.study_topic_id) AS study_topic_id,
        count(*) AS questions_seen,
        count(*) FILTER (WHERE progress.last_outcome = 'correct') AS questions_known,
        count(*) FILTER (WHERE progress.pattern = 'mastered') AS questions_mastered,
        count(*) FILTER (WHERE
            CASE WHEN {_IS_DUE} AND question.deleted_at IS NULL
            THEN (SELECT true FROM published AS publication WHERE {_LIVE} = question.id LIMIT 1) END
        ) AS questions_due,
        avg({_RETRIEVABILITY}) AS mean_retrievability
    FROM (SELECT * FROM {_OWN}) AS progress
    FULL JOIN (
        SELECT question.id, question.study_topic_id, question.deleted_at
        FROM study_questions AS question
        WHERE question.id = ANY (ARRAY(SELECT own.study_question_id FROM {_OWN}))
    ) AS question ON question.id = progress.study_question_id
    GROUP BY 1
) AS topic
"""

_VIEWS = {
    "study_topic_progress": _TOPICS,
    "study_progress": _PROGRESS,
    "study_due": _DUE,
}
"""The query of each view that changes."""


def make() -> None:
    """Replaces the views, which `migrations.beside` does as well."""
    for name, query in _VIEWS.items():
        op.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")


def upgrade() -> None:
    make()


def downgrade() -> None:
    lock_questions()  # first, as the versions before do when they go down
    for statement in VIEWS.values():
        op.execute(statement.replace("CREATE VIEW", "CREATE OR REPLACE VIEW"))
