"""Less to do for every row: a check that another one makes, and compressing what soon goes.

Progress is computed from attempts, and a question that has attempts is held by theirs. A message
that waits is deleted once it has left.

Questions are locked first, as the ingest transaction reads them first.
"""

from alembic import op

revision = "0004"
down_revision = "0003"

_PROGRESS = "study_question_progress"
_OF_QUESTION = "study_question_progress_study_question_id_fkey"


def upgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    op.drop_constraint(_OF_QUESTION, _PROGRESS)
    op.execute("ALTER TABLE outbox SET (toast_tuple_target = 8160)")


def downgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    op.create_foreign_key(_OF_QUESTION, _PROGRESS, "study_questions", ["study_question_id"], ["id"])
    op.execute("ALTER TABLE outbox RESET (toast_tuple_target)")
