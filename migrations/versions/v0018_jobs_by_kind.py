"""A kind of follow-up jobs that waits in the outbox keeps no other kind waiting.

A relay takes the oldest jobs of each kind, so it has to find them past any number of others. The
index has no results, which are most of what passes through. Making it takes milliseconds, if few
messages wait in the outbox.

Questions are locked first, as the ingest transaction reads them first.
"""

import sqlalchemy as sa
from alembic import op

from migrations.content import lock_questions

revision = "0018"
down_revision = "0017"

_JOBS = "outbox_jobs_idx"


def upgrade() -> None:
    lock_questions()
    op.create_index(
        _JOBS,
        "outbox",
        ["routing_key", "id"],
        postgresql_where=sa.text("exchange <> 'study.results'"),
    )


def downgrade() -> None:
    lock_questions()
    op.drop_index(_JOBS)
