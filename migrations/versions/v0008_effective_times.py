"""Why an attempt's time was replaced, and the offset with which it was sent.

The new columns are empty in the rows that are there. They are not held to the new check, because
to read them all takes minutes, while workers wait; what the old check let pass, the new one lets
pass as well. `rebuild` fills in why a time was replaced. Workers of 0.1.0 go on beside it, and
write what they always wrote.

Questions are locked first, as the ingest transaction reads them first.
"""

from alembic import op

revision = "0008"
down_revision = "0007"

_ATTEMPTS = "study_question_attempts"
_OLD = "study_question_attempts_not_in_the_future_check"
_NEW = "study_question_attempts_time_was_check"


def upgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    op.execute(
        f"ALTER TABLE {_ATTEMPTS} ADD COLUMN time_was text, ADD COLUMN utc_offset smallint,"
        f" DROP CONSTRAINT {_OLD}, ADD CONSTRAINT {_NEW} CHECK (CASE time_was"
        " WHEN 'missing' THEN answered_at_sent IS NULL"
        " WHEN 'unreadable' THEN answered_at_sent IS NULL"
        " WHEN 'too_early' THEN answered_at_sent IS NOT NULL AND answered_at_sent < answered_at"
        " WHEN 'in_the_future' THEN answered_at_sent IS NOT NULL AND answered_at_sent > answered_at"
        " ELSE time_was IS NULL AND (answered_at_sent IS NULL OR answered_at <= answered_at_sent)"
        " END) NOT VALID"
    )
    op.execute(
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM {_ATTEMPTS}) THEN"
        f" ALTER TABLE {_ATTEMPTS} VALIDATE CONSTRAINT {_NEW}; END IF; END $$"
    )


# What was early stays where it is: the older program would have it at its time as sent, and its
# check is not made for what is there.
def downgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    op.execute(
        f"ALTER TABLE {_ATTEMPTS} DROP CONSTRAINT {_NEW}, DROP COLUMN time_was,"
        f" DROP COLUMN utc_offset, ADD CONSTRAINT {_OLD} CHECK (answered_at <= answered_at_sent)"
        " NOT VALID"
    )
