"""Two indexes less for every attempt to go into.

A question belongs to one user, so what is found by user and question is found by the question
alone, and what is a user's by their sessions.

Progress comes first, as in the ingest transaction: one that has read it has the lock that this
waits for, and asks for that of the attempts later. The key of progress is made anew, in less than
a second for each million rows, while workers wait.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

_UPGRADE = """
ALTER TABLE study_question_progress
    DROP CONSTRAINT study_question_progress_pkey,
    ADD CONSTRAINT study_question_progress_pkey PRIMARY KEY (study_question_id, user_id);
DROP INDEX study_question_progress_study_question_id_idx;
DROP INDEX study_question_attempts_history_idx
"""

_DOWNGRADE = """
ALTER TABLE study_question_progress
    DROP CONSTRAINT study_question_progress_pkey,
    ADD CONSTRAINT study_question_progress_pkey PRIMARY KEY (user_id, study_question_id);
CREATE INDEX study_question_progress_study_question_id_idx
    ON study_question_progress (study_question_id);
CREATE INDEX study_question_attempts_history_idx
    ON study_question_attempts (user_id, study_question_id, answered_at)
"""


def upgrade() -> None:
    for statement in _UPGRADE.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWNGRADE.split(";\n"):
        op.execute(statement)
