"""Progress has versions, so that a viewer can ask what has changed since one.

Each row has the version that changed it last. Rows that are there already have 0: nothing is
rewritten. What goes is remembered (`ingest_forgotten`), and so is the version of an erasure.

Workers of this version draw one version for each transaction, after they have locked the users, and
write it themselves. Triggers see to everybody else: workers of older versions, and a person with
psql. They draw a version for each row, also under the user's lock as far as workers write, so the
versions of a user still grow in the order of commits. They only run where a row has no new version,
and with the rights of whoever migrates, as older workers' roles may not use the sequence.

Questions are locked first, as the ingest transaction reads them first.
"""

from alembic import op
from sqlalchemy import text

from migrations.content import lock_questions
from migrations.rights import grant_to_workers

revision = "0020"
down_revision = "0019"

_SEQUENCE = "ingest_versions"
# JavaScript's numbers are exact up to here.
_CREATE_SEQUENCE = f"CREATE SEQUENCE {_SEQUENCE} MAXVALUE 9007199254740991"

_FUNCTION = (
    "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
    " SET search_path = {schema}, pg_temp AS $$ {body} $$"
)

_FUNCTIONS = {
    "study_question_progress_version": """
BEGIN
    NEW.version := nextval('ingest_versions');
    RETURN NEW;
END
""",
    # An erasure forgets everything at once, and keeps no list of what there was.
    "study_question_progress_forget": """
BEGIN
    INSERT INTO ingest_forgotten (user_id, study_question_id, version)
    SELECT gone.user_id, gone.study_question_id, drawn.version
    FROM gone, (SELECT nextval('ingest_versions') AS version) AS drawn
    WHERE NOT EXISTS (SELECT FROM ingest_erasures AS erasure
        WHERE erasure.user_id = gone.user_id AND erasure.xmin = pg_current_xact_id()::xid)
    ORDER BY gone.user_id, gone.study_question_id
    ON CONFLICT (user_id, study_question_id) DO UPDATE SET version = excluded.version;
    RETURN NULL;
END
""",
    "ingest_erasures_version": """
BEGIN
    DELETE FROM ingest_forgotten WHERE user_id = NEW.user_id;
    NEW.version := nextval('ingest_versions');
    RETURN NEW;
END
""",
}

_TRIGGERS = (
    "CREATE TRIGGER study_question_progress_inserted BEFORE INSERT ON study_question_progress"
    " FOR EACH ROW WHEN (NEW.version = 0) EXECUTE FUNCTION study_question_progress_version()",
    "CREATE TRIGGER study_question_progress_updated BEFORE UPDATE ON study_question_progress"
    " FOR EACH ROW WHEN (NEW.version = OLD.version)"
    " EXECUTE FUNCTION study_question_progress_version()",
    "CREATE TRIGGER study_question_progress_deleted AFTER DELETE ON study_question_progress"
    " REFERENCING OLD TABLE AS gone"
    " FOR EACH STATEMENT EXECUTE FUNCTION study_question_progress_forget()",
    "CREATE TRIGGER ingest_erasures_version BEFORE INSERT OR UPDATE ON ingest_erasures"
    " FOR EACH ROW EXECUTE FUNCTION ingest_erasures_version()",
)

_FORGOTTEN = """
CREATE TABLE ingest_forgotten (
    user_id bigint NOT NULL,
    study_question_id bigint NOT NULL,
    version bigint NOT NULL,
    CONSTRAINT ingest_forgotten_pkey PRIMARY KEY (user_id, study_question_id)
)
"""


def make() -> None:
    """Makes what no table contains, which `migrations.beside` does as well."""
    op.execute(_CREATE_SEQUENCE)
    schema = op.get_bind().scalar(text("SELECT quote_ident(current_schema())"))
    for name, body in _FUNCTIONS.items():
        op.execute(_FUNCTION.format(name=name, schema=schema, body=body))
        op.execute(f"REVOKE ALL ON FUNCTION {name}() FROM PUBLIC")
    for trigger in _TRIGGERS:
        op.execute(trigger)


def remove() -> None:
    """Removes it again, with the triggers."""
    for name in _FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}() CASCADE")
    op.execute(f"DROP SEQUENCE {_SEQUENCE}")


def upgrade() -> None:
    lock_questions()
    op.execute("ALTER TABLE study_question_progress ADD COLUMN version bigint NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE ingest_erasures ADD COLUMN version bigint NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE viewer_grants ADD COLUMN asked_at timestamptz")
    # Nobody has asked yet, so the index is empty.
    op.execute(
        "CREATE INDEX viewer_grants_user_id_idx ON viewer_grants (user_id)"
        " WHERE asked_at IS NOT NULL"
    )
    op.execute(_FORGOTTEN)
    make()
    grant_to_workers(
        "SELECT, UPDATE ON ingest_versions",
        "SELECT ON ingest_forgotten",
        "UPDATE (asked_at) ON viewer_grants",
    )


def downgrade() -> None:
    lock_questions()
    remove()
    op.execute("DROP TABLE ingest_forgotten")
    op.execute("DROP INDEX viewer_grants_user_id_idx")
    op.execute("ALTER TABLE viewer_grants DROP COLUMN asked_at")
    op.execute("ALTER TABLE ingest_erasures DROP COLUMN version")
    op.execute("ALTER TABLE study_question_progress DROP COLUMN version")
