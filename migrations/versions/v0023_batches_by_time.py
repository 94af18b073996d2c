"""Batches are found by the time of their receipt, and by their viewer.

The indexes have been made before, without holding anybody up (`worker.store.prepare`). A block
range index costs ingest next to nothing, because it has one entry for each megabyte of the inbox.
Within a viewer, the other one grows at its end.
"""

from alembic import op

from migrations.content import lock_questions

revision = "0023"
down_revision = "0021"

_INDEXES = {
    "ingest_inbox_received_at_idx": "USING brin (received_at) WITH (autosummarize = on)",
    "ingest_inbox_viewer_received_at_idx": "(viewer, received_at)",
}


def upgrade() -> None:
    for name, what in _INDEXES.items():
        op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON ingest_inbox {what}")


def downgrade() -> None:
    # As ingest does: it locks the questions first.
    lock_questions()
    for name in _INDEXES:
        op.drop_index(name)
