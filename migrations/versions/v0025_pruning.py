"""Who prunes, and how much has gone. What a restore needs stays in the audit, whoever deletes.

The table is new, and nothing has ever deleted from the audit: workers of older versions do neither.
"""

from alembic import op
from sqlalchemy import text

from migrations.content import lock_questions
from migrations.rights import grant_to_workers

revision = "0025"
down_revision = "0024"

_TABLE = """
CREATE TABLE ingest_pruning (
    single boolean NOT NULL DEFAULT true CONSTRAINT ingest_pruning_pkey PRIMARY KEY,
    worker text,
    stepped_at timestamptz,
    finished_at timestamptz,
    results_before timestamptz,
    results bigint NOT NULL DEFAULT 0,
    audit bigint NOT NULL DEFAULT 0,
    moments bigint NOT NULL DEFAULT 0,
    CONSTRAINT ingest_pruning_single_check CHECK (single)
)
"""

# Whoever restores a backup has to erase again whom the lost database had erased.
_KEEP = """
CREATE FUNCTION ingest_audit_keep() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
BEGIN
    IF OLD.operation = 'erase' OR OLD.happened_at > now() - interval '30 days' THEN
        RAISE restrict_violation USING MESSAGE =
            'the audit keeps what is younger than 30 days, and what tells of an erasure';
    END IF;
    RETURN OLD;
END
$$
"""
_TRIGGER = (
    "CREATE TRIGGER ingest_audit_keep BEFORE DELETE ON ingest_audit"
    " FOR EACH ROW EXECUTE FUNCTION ingest_audit_keep()"
)


def make() -> None:
    """Makes what no table contains, which `migrations.beside` does as well."""
    op.execute("INSERT INTO ingest_pruning DEFAULT VALUES")
    schema = op.get_bind().scalar(text("SELECT quote_ident(current_schema())"))
    op.execute(_KEEP.format(schema=schema))
    op.execute("REVOKE ALL ON FUNCTION ingest_audit_keep() FROM PUBLIC")
    op.execute(_TRIGGER)


def remove() -> None:
    """Removes the trigger again."""
    op.execute("DROP FUNCTION ingest_audit_keep() CASCADE")


def upgrade() -> None:
    op.execute(_TABLE)
    make()
    grant_to_workers(
        "SELECT, UPDATE ON ingest_pruning",
        "SELECT (id), SELECT (happened_at), SELECT (operation), DELETE ON ingest_audit",
    )


def downgrade() -> None:
    # As ingest does: it locks the questions first.
    lock_questions()
    remove()
    op.execute("DROP TABLE ingest_pruning")
