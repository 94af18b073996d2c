"""What a correction replaced is kept with the attempt.

The new column is empty in all rows, so none is read or written. Workers of an older version go on
inserting attempts without it.

Questions are locked first, as the ingest transaction reads them first.
"""

from alembic import op

revision = "0012"
down_revision = "0011"

_ATTEMPTS = "study_question_attempts"
_CHECK = "study_question_attempts_replaced_check"


def upgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    op.execute(
        f"ALTER TABLE {_ATTEMPTS} ADD COLUMN replaced jsonb,"
        f" ADD CONSTRAINT {_CHECK} CHECK (jsonb_typeof(replaced) = 'array') NOT VALID"
    )
    # To read the rows of a large table takes minutes, and none of them has the column.
    op.execute(
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM {_ATTEMPTS}) THEN"
        f" ALTER TABLE {_ATTEMPTS} VALIDATE CONSTRAINT {_CHECK}; END IF; END $$"
    )


# The older program exports the attempts as they are now, under the ids of what they were.
def downgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    op.execute(f"ALTER TABLE {_ATTEMPTS} DROP COLUMN replaced")
