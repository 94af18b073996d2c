"""Who was erased, and when, so that no answer from before comes in again.

The table is new, so nobody waits for it. Whoever may read grants, which a worker does, may read it.
"""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE ingest_erasures ("
        " user_id bigint NOT NULL CONSTRAINT ingest_erasures_pkey PRIMARY KEY,"
        " erased_at timestamptz NOT NULL)"
    )
    op.execute(
        "DO $$ DECLARE role text; BEGIN"
        " FOR role IN SELECT grantee FROM information_schema.role_table_grants"
        " WHERE table_schema = current_schema() AND table_name = 'viewer_grants'"
        " AND privilege_type = 'SELECT' AND grantee <> 'PUBLIC'"
        " LOOP EXECUTE format('GRANT SELECT ON ingest_erasures TO %I', role); END LOOP; END $$"
    )


def downgrade() -> None:
    op.execute("DROP TABLE ingest_erasures")
