"""Workers agree on who consumes which partition of the queue.

The table is new and small, and it stays empty while there are no partitions.
"""

from alembic import op

revision = "0019"
down_revision = "0018"

_TABLE = """
CREATE TABLE ingest_leases (
    queue text NOT NULL,
    worker text NOT NULL,
    until timestamptz NOT NULL,
    CONSTRAINT ingest_leases_pkey PRIMARY KEY (queue, worker)
)
"""


def upgrade() -> None:
    op.execute(_TABLE)
    # Of the roles that `database-role` has made for workers.
    op.execute(
        "DO $$ DECLARE role text; BEGIN"
        " FOR role IN SELECT grantee FROM information_schema.role_table_grants"
        " WHERE table_schema = current_schema() AND table_name = 'ingest_replays'"
        " AND privilege_type = 'DELETE' AND grantee <> 'PUBLIC'"
        " LOOP EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON ingest_leases TO %I', role);"
        " END LOOP; END $$"
    )


def downgrade() -> None:
    op.execute("DROP TABLE ingest_leases")
