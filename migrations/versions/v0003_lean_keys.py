"""Two indexes less for every attempt to go into.

A question belongs to one user, so what is found by user and question is found by the question
alone, and what is a user's by their sessions.

Progress comes first, as in the ingest transaction: one that has read it has the lock that this
waits for, and asks for that of the attempts later. (Questions come before both: the next version
needs them too, and may run in the same transaction.) The key of progress is made anew, in less
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
