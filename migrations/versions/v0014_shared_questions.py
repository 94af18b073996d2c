"""Questions and topics that many users share have no owner, and attempts are found by question and
user.

The new index has been made before, without holding anybody up (`worker.store.prepare`); here it
takes the place of the old one. Workers of an older version take shared questions for ones that
nobody may answer: publish them when the last of these workers has ended.

Questions are locked first, as the ingest transaction reads them first.
"""

import sqlalchemy as sa
from alembic import op

from worker.errors import SchemaError

revision = "0014"
down_revision = "0013"

_OWNED = ("study_questions", "study_topics")
_OLD = "study_question_attempts_study_question_id_idx"
_NEW = "study_question_attempts_study_question_id_user_id_idx"
_ATTEMPTS = "study_question_attempts"


def upgrade() -> None:
    for table in _ours():
        op.alter_column(table, "user_id", nullable=True)
    op.create_index(_NEW, _ATTEMPTS, ["study_question_id", "user_id"], if_not_exists=True)
    op.drop_index(_OLD, _ATTEMPTS)


def downgrade() -> None:
    for table in _ours():
        shared = (
            sa.select(sa.func.count())
            .select_from(sa.table(table))
            .where(sa.column("user_id").is_(None))
        )
        if count := op.get_bind().scalar(shared):
            raise SchemaError(
                f"An older program can't use the {count} rows of {table} without a user_id",
                "give each one an owner, or delete it.",
            )
        op.alter_column(table, "user_id", nullable=False)
    op.create_index(_OLD, _ATTEMPTS, ["study_question_id"])
    op.drop_index(_NEW, _ATTEMPTS)


def _ours() -> list[str]:
    """Those of the tables that are not the application's, locked in the order of ingest."""
    made = sa.text("SELECT relation FROM ingest_content WHERE is_ours")
    ours = set(op.get_bind().scalars(made))
    found = [table for table in _OWNED if table in ours]
    for table in found:
        op.execute(f"LOCK TABLE {table}")
    return found
