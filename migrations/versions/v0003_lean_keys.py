"""Two indexes less for every attempt to go into.

A question belongs to one user, so what is found by user and question is found by the question
alone, and what is a user's by their sessions.

Tables are locked in the order of the ingest transaction, which reads progress and asks for the
attempts later. It reads questions before both, and the next version, which may run in the same
transaction as this one, locks them: so they come first. The key of progress is made anew, in less
than a second for each million rows, while workers wait.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

_PROGRESS = "study_question_progress"
_KEY = "study_question_progress_pkey"


def upgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    op.drop_constraint(_KEY, _PROGRESS)
    op.create_primary_key(_KEY, _PROGRESS, ["study_question_id", "user_id"])
    op.drop_index("study_question_progress_study_question_id_idx")
    op.drop_index("study_question_attempts_history_idx")


def downgrade() -> None:
    op.drop_constraint(_KEY, _PROGRESS)
    op.create_primary_key(_KEY, _PROGRESS, ["user_id", "study_question_id"])
    op.create_index(
        "study_question_progress_study_question_id_idx", _PROGRESS, ["study_question_id"]
    )
    op.create_index(
        "study_question_attempts_history_idx",
        "study_question_attempts",
        ["user_id", "study_question_id", "answered_at"],
    )
