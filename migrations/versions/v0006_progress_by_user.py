"""One index less for every question that is answered for the first time.

Whoever asks for progress knows whose it is, so its key has the user first, and stands in for the
index on user and topic. (It had the question first for the sake of a foreign key that is gone.) The
key is made anew, in less than a second for each million rows, while workers wait.

Questions are locked first, as the ingest transaction reads them first.
"""

from alembic import op

revision = "0006"
down_revision = "0005"

_PROGRESS = "study_question_progress"
_KEY = "study_question_progress_pkey"
_BY_TOPIC = "study_question_progress_user_id_study_topic_id_idx"


def upgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    op.drop_constraint(_KEY, _PROGRESS)
    op.create_primary_key(_KEY, _PROGRESS, ["user_id", "study_question_id"])
    op.drop_index(_BY_TOPIC)


def downgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    op.drop_constraint(_KEY, _PROGRESS)
    op.create_primary_key(_KEY, _PROGRESS, ["study_question_id", "user_id"])
    op.create_index(_BY_TOPIC, _PROGRESS, ["user_id", "study_topic_id"])
