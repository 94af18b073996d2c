"""The newest schema beside an application's own content, and its removal.

The versions before this one made the content themselves, and laid references on it. So where the
application has content, they are not run: the tables are made as this version has them. What the
application has gets no trigger, no constraint and no index.
"""

from collections.abc import Collection

from alembic import context, op
from alembic.operations import Operations
from sqlalchemy import Connection
from sqlalchemy.schema import CreateIndex, CreateTable

from migrations.versions import v0005_references_by_set as references
from migrations.versions import v0020_versions_of_progress as versions
from migrations.versions import v0021_leaner_views as views
from migrations.versions import v0025_pruning as pruning
from migrations.versions.v0017_views_for_applications import VIEWS
from worker.errors import SchemaError
from worker.store import content as stored
from worker.store.tables import METADATA


def content(connection: Connection, at: str | None, target: str) -> set[str]:
    """The relations of the content that are the application's.

    Raises `SchemaError` if another relation has the name of one of ours.
    """
    if at is not None:
        return stored.theirs(connection)
    ours = [name for name in (*METADATA.tables, *VIEWS) if name not in stored.RELATIONS]
    if target != "base" and (strange := sorted(stored.there(connection, ours))):
        raise SchemaError(
            f"The database has relations of its own with the names {', '.join(strange)}",
            "set INGEST_DATABASE_SCHEMA to a schema of its own.",
        )
    return stored.there(connection, stored.RELATIONS)


def move(connection: Connection, theirs: Collection[str], at: str | None, target: str) -> None:
    """Moves a schema whose content is the application's from the version `at` to `target`, inside
    Alembic's environment. It also removes the newest schema with content of ours.

    Raises `SchemaError` if the content is not what a worker needs, if `target` is a version that
    can't use it, or if `at` has to be brought up to date before it can be removed.
    """
    migration = context.get_context()
    if at is not None and target != "base":
        stored.check(connection, theirs)
        context.run_migrations()
        return
    with Operations.context(migration):
        if at not in (None, context.script.get_current_head()):
            raise SchemaError(
                f"Schema {at} beside the application's own content can't be removed by this"
                " program",
                "migrate to the newest schema first.",
            )
        if at is not None:
            _remove(theirs)
            migration.stamp(context.script, "base")
        elif target in ("head", context.script.get_current_head()):
            stored.check(connection, theirs)
            _install(connection, theirs)
            migration.stamp(context.script, "head")
        elif target != "base":
            raise SchemaError(
                f"Schema {target} can't use the application's own content",
                "migrate to the newest one.",
            )


def _install(connection: Connection, theirs: Collection[str]) -> None:
    """Makes everything that the application does not have."""
    for table in METADATA.sorted_tables:
        if table.name in theirs:
            continue
        to_ours = [
            constraint
            for constraint in table.foreign_key_constraints
            if constraint.referred_table.name not in theirs
        ]
        connection.execute(CreateTable(table, include_foreign_key_constraints=to_ours))
        for index in sorted(table.indexes, key=lambda each: str(each.name)):
            connection.execute(CreateIndex(index))
    for reference in references._REFERENCES:
        if reference.target not in theirs:
            _refer(reference)
    versions.make()
    pruning.make()
    for view in VIEWS.values():
        op.execute(view)
    views.make()
    connection.execute(
        METADATA.tables[stored.TABLE].insert(),
        [{"relation": name, "is_ours": name not in theirs} for name in stored.RELATIONS],
    )


def _remove(theirs: Collection[str]) -> None:
    """Drops everything that `_install`, or a version after it, has made."""
    for view in VIEWS:
        op.execute(f"DROP VIEW {view}")
    versions.remove()
    pruning.remove()
    for table in reversed(METADATA.sorted_tables):
        if table.name not in theirs:
            op.execute(f"DROP TABLE {table.name}")
    for reference in references._REFERENCES:
        if reference.target not in theirs:
            op.execute(f"DROP FUNCTION {reference.name}_refer(), {reference.name}_hold()")


def _refer(reference: references._Reference) -> None:
    """A reference as migration 0005 made it."""
    name, table, target = reference.name, reference.table, reference.target
    references._create(f"{name}_refer", references._REFER, reference)
    for event in ("INSERT", "UPDATE"):
        op.execute(
            f"CREATE TRIGGER {name}_refer_{event.lower()} AFTER {event} ON {table}"
            " REFERENCING NEW TABLE AS written"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {name}_refer()"
        )
    references._create(f"{name}_hold", references._HOLD, reference)
    op.execute(
        f"CREATE TRIGGER {name}_hold AFTER DELETE OR UPDATE OF id ON {target}"
        f" FOR EACH ROW EXECUTE FUNCTION {name}_hold()"
    )
    op.execute(
        f"CREATE TRIGGER {name}_hold_all AFTER TRUNCATE ON {target}"
        f" FOR EACH STATEMENT EXECUTE FUNCTION {name}_hold()"
    )
