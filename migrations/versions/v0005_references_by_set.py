"""What the log refers to is looked up once for each statement, and not once for each row.

A foreign key looks every row up by a query of its own, which was half of what an attempt cost to
write. These triggers hold the same: no row without what it refers to, whoever writes it, and
nothing that is referred to can go. What is referred to is locked as a foreign key locks it, so that
it can't go in the same moment either.

Questions are locked first, as the ingest transaction reads them first.
"""

from typing import NamedTuple

from alembic import op
from sqlalchemy import text

revision = "0005"
down_revision = "0004"


class _Reference(NamedTuple):
    table: str
    column: str
    kind: str
    target: str

    @property
    def name(self) -> str:
        return f"{self.table}_{self.column}"


_REFERENCES = (
    _Reference("study_question_attempts", "study_question_id", "bigint", "study_questions"),
    _Reference("study_question_attempts", "quiz_session_id", "uuid", "study_quiz_sessions"),
    _Reference("study_quiz_sessions", "study_topic_id", "bigint", "study_topics"),
)

# With the rights of whoever migrates, as a foreign key is checked with those of the tables' owner:
# to lock a row takes the right to change it, which a worker doesn't have.
_FUNCTION = (
    "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
    " SET search_path = {schema}, pg_temp AS $$ {body} $$"
)

_REFER = """
DECLARE
    wanted {kind}[] := ARRAY(SELECT DISTINCT {column} FROM written);
    found bigint;
BEGIN
    PERFORM FROM {target} WHERE id = ANY (wanted) FOR KEY SHARE;
    GET DIAGNOSTICS found = ROW_COUNT;
    IF found < cardinality(wanted) THEN
        RAISE foreign_key_violation USING
            TABLE = '{table}', COLUMN = '{column}',
            MESSAGE = '{table} refers to what is not in {target}: '
                || (SELECT string_agg(missing::text, ', ') FROM unnest(wanted) AS missing
                    WHERE NOT EXISTS (SELECT FROM {target} WHERE id = missing));
    END IF;
    RETURN NULL;
END
"""

# At another isolation level than READ COMMITTED a row that has just been committed is not seen:
# then nothing may go, rather than leave that row behind.
_HOLD = """
DECLARE
    held boolean;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        held := EXISTS (SELECT FROM {table});
    ELSE
        held := EXISTS (SELECT FROM {table} WHERE {column} = OLD.id)
            AND NOT EXISTS (SELECT FROM {target} WHERE id = OLD.id);
    END IF;
    IF held THEN
        RAISE foreign_key_violation USING
            TABLE = '{table}', COLUMN = '{column}',
            MESSAGE = '{table} refers to {target}: '
                || coalesce('id ' || OLD.id::text || ' has to stay', 'it can not be emptied');
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE feature_not_supported USING
            MESSAGE = 'a row of {target} can only go at READ COMMITTED',
            HINT = 'At another level a row of {table} that has just come in would not be seen.';
    END IF;
    RETURN NULL;
END
"""


def _create(name: str, body: str, reference: _Reference) -> None:
    schema = op.get_bind().scalar(text("SELECT quote_ident(current_schema())"))
    body = body.format(**reference._asdict())
    op.execute(_FUNCTION.format(name=name, schema=schema, body=body))
    op.execute(f"REVOKE ALL ON FUNCTION {name}() FROM PUBLIC")  # nobody's to hang on other tables


def upgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    for reference in _REFERENCES:
        name, table, target = reference.name, reference.table, reference.target
        op.drop_constraint(f"{name}_fkey", table)
        _create(f"{name}_refer", _REFER, reference)
        for event in ("INSERT", "UPDATE"):
            op.execute(
                f"CREATE TRIGGER {name}_refer_{event.lower()} AFTER {event} ON {table}"
                " REFERENCING NEW TABLE AS written"
                f" FOR EACH STATEMENT EXECUTE FUNCTION {name}_refer()"
            )
        _create(f"{name}_hold", _HOLD, reference)
        op.execute(
            f"CREATE TRIGGER {name}_hold AFTER DELETE OR UPDATE OF id ON {target}"
            f" FOR EACH ROW EXECUTE FUNCTION {name}_hold()"
        )
        op.execute(
            f"CREATE TRIGGER {name}_hold_all AFTER TRUNCATE ON {target}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {name}_hold()"
        )


def downgrade() -> None:
    op.execute("LOCK TABLE study_questions")
    for reference in _REFERENCES:
        name = reference.name
        op.execute(f"DROP FUNCTION {name}_refer(), {name}_hold() CASCADE")
        op.create_foreign_key(
            f"{name}_fkey", reference.table, reference.target, [reference.column], ["id"]
        )
