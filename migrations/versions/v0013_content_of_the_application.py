"""Whose the content is: on record for each of its relations.

The versions before this one made all of it. Where the application has content of its own, they are
not run: `migrations.beside` makes the tables. The table is new, so nobody waits for this. Whoever
may read grants, which a worker does, may read it.
"""

import sqlalchemy as sa
from alembic import op

from worker.errors import SchemaError

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE ingest_content ("
        " relation text NOT NULL CONSTRAINT ingest_content_pkey PRIMARY KEY,"
        " is_ours boolean NOT NULL)"
    )
    op.execute(
        "INSERT INTO ingest_content (relation, is_ours) VALUES"
        " ('published', true), ('study_topics', true), ('study_questions', true)"
    )
    op.execute(
        "DO $$ DECLARE role text; BEGIN"
        " FOR role IN SELECT grantee FROM information_schema.role_table_grants"
        " WHERE table_schema = current_schema() AND table_name = 'viewer_grants'"
        " AND privilege_type = 'SELECT' AND grantee <> 'PUBLIC'"
        " LOOP EXECUTE format('GRANT SELECT ON ingest_content TO %I', role); END LOOP; END $$"
    )


def downgrade() -> None:
    if op.get_bind().scalar(sa.text("SELECT count(*) FROM ingest_content WHERE NOT is_ours")):
        raise SchemaError(
            "An older program can't use the application's own content",
            "stay at schema 0013 or a newer one, or go to base.",
        )
    op.execute("DROP TABLE ingest_content")
