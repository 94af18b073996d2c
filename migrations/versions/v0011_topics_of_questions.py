"""The view of progress by topic has each question under the topic that it belongs to now.

A question that the application moves to another topic moves in the view at once, and not only with
its next answer. Nobody waits for this.

Questions are locked first, as the ingest transaction reads them first.
"""

from alembic import op

revision = "0011"
down_revision = "0010"

_VIEW = """
CREATE OR REPLACE VIEW study_topic_progress AS
SELECT
    progress.user_id,
    {topic} AS study_topic_id,
    count(*) AS questions_seen,
    count(*) FILTER (WHERE last_outcome = 'correct') AS questions_known,
    count(*) FILTER (WHERE pattern = 'mastered') AS questions_mastered,
    count(*) FILTER (WHERE due_at <= now()) AS questions_due,
    avg(power(
        1 + (power(0.9::float8, -1 / 0.1542::float8) - 1)
            * greatest(0, floor(extract(epoch FROM now() - last_answered_at) / 86400))::float8
            / stability,
        -0.1542::float8)) AS mean_retrievability
FROM study_question_progress AS progress
{join}
GROUP BY 1, 2
"""


def upgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    op.execute(
        _VIEW.format(
            topic="coalesce(question.study_topic_id, progress.study_topic_id)",
            join="LEFT JOIN study_questions AS question"
            " ON question.id = progress.study_question_id",
        )
    )


def downgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    op.execute(_VIEW.format(topic="progress.study_topic_id", join=""))
