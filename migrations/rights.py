"""Rights on what a migration adds, for the roles that `database-role` has made for workers."""

from alembic import op

_GRANT = """
DO $$ DECLARE role text; BEGIN
    FOR role IN SELECT grantee FROM information_schema.role_table_grants
        WHERE table_schema = current_schema() AND table_name = 'ingest_replays'
        AND privilege_type = 'DELETE' AND grantee <> 'PUBLIC'
    LOOP
        {grants}
    END LOOP;
END $$
"""


def grant_to_workers(*rights: str) -> None:
    """Grants each of these to every such role: "SELECT ON ingest_forgotten", for example."""
    grants = "\n        ".join(f"EXECUTE format('GRANT {each} TO %I', role);" for each in rights)
    op.execute(_GRANT.format(grants=grants))
