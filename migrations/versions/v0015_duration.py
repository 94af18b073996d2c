"""How long an answer took is kept with the attempt (version 1.1 of the attempt batch).

The new column is empty in all rows, so none is read or written. Workers of an older version go on
inserting attempts without it.

Questions are locked first, as the ingest transaction reads them first, unless they are the
application's.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

_ATTEMPTS = "study_question_attempts"
_QUESTIONS = "study_questions"
_IS_OURS = sa.text("SELECT is_ours FROM ingest_content WHERE relation = :relation")


def upgrade() -> None:
    _lock_questions()
    op.execute(f"ALTER TABLE {_ATTEMPTS} ADD COLUMN duration_ms integer")


def downgrade() -> None:
    _lock_questions()
    op.execute(f"ALTER TABLE {_ATTEMPTS} DROP COLUMN duration_ms")


def _lock_questions() -> None:
    if op.get_bind().scalar(_IS_OURS, {"relation": _QUESTIONS}):
        op.execute(f"LOCK TABLE {_QUESTIONS}")
