"""The database roles of workers and of readers, with the rights that each needs and no others. None
of them has DDL.

Run it as the owner of the tables, after `migrate`.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.errors import RoleError
from worker.store.ours import schema_of

RIGHTS: Final = {
    "study_ingest_version": "SELECT",
    "published": "SELECT",
    "study_questions": "SELECT",
    "study_quiz_sessions": "SELECT, INSERT",
    "study_question_attempts": "SELECT, INSERT",
    "study_question_progress": "SELECT, INSERT, UPDATE",
    "ingest_inbox": "SELECT, INSERT, UPDATE (summary)",
    "outbox": "SELECT, INSERT, DELETE",
    "viewer_grants": "SELECT, UPDATE (asked_at)",
    "ingest_erasures": "SELECT",
    "ingest_forgotten": "SELECT",
    "ingest_versions": "SELECT, UPDATE",
    "ingest_groups": "SELECT, INSERT, DELETE",
    "ingest_told": "SELECT, INSERT, DELETE",
    "ingest_workers": "SELECT, INSERT, UPDATE, DELETE",
    "ingest_dead_letters": "SELECT, INSERT, DELETE",
    "ingest_replays": "SELECT, DELETE",
    "ingest_pause": "SELECT",
    "ingest_leases": "SELECT, INSERT, UPDATE, DELETE",
    "ingest_content": "SELECT",
    "ingest_pruning": "SELECT, UPDATE",
    # Which entries may go, a trigger of migration 0025 decides. A worker can't read what they say.
    "ingest_audit": "SELECT (id), SELECT (happened_at), SELECT (operation), DELETE",
}
"""A worker's rights on each table, and on the sequence of versions. It may not even read any other
table.
"""

VIEWS: Final = dict.fromkeys(
    ("study_due", "study_progress", "study_topic_progress", "study_history"), "SELECT"
)
"""A reader's rights: the views for the study application, and nothing below them."""

_NAME_BYTES: Final = 63
"""PostgreSQL cuts longer names."""
_ITERATIONS: Final = 4_096
"""PostgreSQL's own number. The password has 192 random bits, which nobody can guess."""

_TROUBLE: Final = text(
    "SELECT rolsuper OR rolname = current_user FROM pg_roles WHERE rolname = :role"
)

# These statements take no parameters, so the server builds them and quotes the values.
_STATEMENTS: Final = (
    "CREATE ROLE {role} LOGIN PASSWORD {verifier}",
    "ALTER ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
    " PASSWORD {verifier}",
    "REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role}",
    "REVOKE ALL ON SCHEMA {schema} FROM {role}",
    # Before PostgreSQL 15 everybody could create tables. Temporary tables are still allowed.
    "REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC",
    "REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC",
    "GRANT CONNECT ON DATABASE {database} TO {role}",
    "GRANT USAGE ON SCHEMA {schema} TO {role}",
)
_GRANT: Final = "GRANT {rights} ON {{schema}}.{table} TO {{role}}"

_QUOTED: Final = text(
    "SELECT quote_ident(:role) AS role, quote_literal(:verifier) AS verifier,"
    " quote_ident(:schema) AS schema, quote_ident(current_database()) AS database,"
    " EXISTS (SELECT FROM pg_roles WHERE rolname = :role) AS exists"
)


async def ensure_worker(connection: AsyncConnection, role: str) -> str:
    """Makes the role a worker's (see `ensure`)."""
    return await ensure(connection, role, RIGHTS)


async def ensure_reader(connection: AsyncConnection, role: str) -> str:
    """Makes the role a reader's (see `ensure`)."""
    return await ensure(connection, role, VIEWS)


async def ensure(connection: AsyncConnection, role: str, rights: Mapping[str, str]) -> str:
    """Creates the role, or restores its `rights` and sets a new password. Returns the password.

    Raises `RoleError` for a superuser and for the current role, which would lose its rights, for a
    name that PostgreSQL can't have, and where the database refuses.
    """
    if not role or len(role.encode(errors="replace")) > _NAME_BYTES or not role.isprintable():
        raise RoleError(
            f"{role!r} can't name a role",
            f"choose 1 to {_NAME_BYTES} bytes of printable text.",
        )
    if await connection.scalar(_TROUBLE, {"role": role}):
        raise RoleError(
            f"Role {role!r} is a superuser or the current role, and would lose most of its rights",
            "choose another name.",
        )
    password = secrets.token_urlsafe(24)
    quoted = (
        await connection.execute(
            _QUOTED,
            {
                "role": role,
                "verifier": _verifier(password),
                "schema": schema_of(connection),
            },
        )
    ).one()
    create, *statements = _STATEMENTS
    statements += [_GRANT.format(table=table, rights=may) for table, may in rights.items()]
    for statement in statements if quoted.exists else (create, *statements):
        try:
            await connection.exec_driver_sql(statement.format(**quoted._mapping))
        except DBAPIError as error:
            # Not the error itself, which shows the statement and with it what a password becomes.
            said = str(error.orig).partition("\n")[0].rpartition(">: ")[2]
            raise RoleError(
                f"The database refused to give role {role!r} its rights ({said})",
                "run this as the owner of the tables, with a login that may create roles.",
            ) from None
    return password


def _verifier(password: str) -> str:
    """The password in the form that PostgreSQL stores (RFC 5802), so that no server log can contain
    more.
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    keys = (hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256"))
    said, stored, server = (base64.b64encode(part).decode() for part in (salt, *keys))
    return f"SCRAM-SHA-256${_ITERATIONS}:{said}${stored}:{server}"
