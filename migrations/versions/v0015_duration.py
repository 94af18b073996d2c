"""How long an answer took is kept with the attempt (version 1.1 of the attempt batch).

The new column is empty in all rows, so none is read or written. Workers of an older version go on
inserting attempts without it. No other table is locked, so nobody can wait in a circle.
"""

from alembic import op

revision = "0015"
down_revision = "0014"

_ATTEMPTS = "study_question_attempts"


def upgrade() -> None:
    op.execute(f"ALTER TABLE {_ATTEMPTS} ADD COLUMN duration_ms integer")


def downgrade() -> None:
    op.execute(f"ALTER TABLE {_ATTEMPTS} DROP COLUMN duration_ms")
