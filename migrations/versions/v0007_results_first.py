"""Results leave whether or not jobs do, and an index less for every message.

A relay takes the oldest results and the oldest of all else, each by their ids; nothing looks for
a routing key.

Questions are locked first, as the ingest transaction reads them first.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_BY_KEY = "outbox_routing_key_id_idx"
_RESULTS = "outbox_results_idx"


def upgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    op.drop_index(_BY_KEY)
    op.create_index(
        _RESULTS, "outbox", ["id"], postgresql_where=sa.text("exchange = 'study.results'")
    )


def downgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    op.drop_index(_RESULTS)
    op.create_index(_BY_KEY, "outbox", ["routing_key", "id"])
