"""Commands for the identities of viewers: `viewer add | import | grant | revoke | rotate |
upgrade | list`.

A password is printed once, on standard output. It is never in a log or in an error.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from schemas import amqp
from worker.cli.answers import answer
from worker.cli.asking import Json, JsonLines, Lines, Reason, bar, by, moment, printable
from worker.cli.files import opened
from worker.cli.shared import engine_of, load_settings, run
from worker.errors import SettingsError, ViewerError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.broker.accounts import Accounts
    from worker.operate.viewers import Ensured, Viewer
    from worker.settings import Settings

_NAME = Annotated[
    str,
    typer.Argument(
        metavar="VIEWER",
        help="The viewer's name and broker login: 1 to 64 letters, digits, '-' or '_'.",
    ),
]
_USERS_HELP = "A user whose history the viewer may write. Can be given several times."
_SOME_USERS = Annotated[list[int], typer.Option("--user", min=1, max=2**63 - 1, help=_USERS_HELP)]

_commands = typer.Typer(
    name="viewer",
    help="Create viewers, and decide whose history each may write.",
    no_args_is_help=True,
)


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (add, grant, revoke, rotate, upgrade):
        _commands.command()(command)
    _commands.command("import")(import_file)
    _commands.command("list")(list_viewers)
    app.add_typer(_commands)


def add(
    viewer: _NAME,
    user: Annotated[
        list[int] | None, typer.Option("--user", min=1, max=2**63 - 1, help=_USERS_HELP)
    ] = None,
    mqtt: Annotated[
        bool,
        typer.Option("--mqtt", help="Use MQTT only, for a browser (see INGEST_MQTT_EXCHANGE)."),
    ] = False,
    http: Annotated[
        bool,
        typer.Option(
            "--http", help="Also allow the broker's HTTP API, for trying things out only."
        ),
    ] = False,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Creates a viewer: a broker login that may publish as itself and read its own results.

    It may also ask for the progress of its users. The login has no other rights. It cannot declare
    a queue, so this command also creates its queues. The password is shown only once. The command
    needs the management API, and a login that may create users.

    Example: study-ingest viewer add phone-3f2a --user 42
    """
    from worker.operate import viewers

    settings = load_settings()
    exchange = _mqtt_exchange(settings) if mqtt else None
    users = user or []

    async def work() -> str:
        async with _servers(settings) as (accounts, engine):
            access = viewers.Access(exchange, http)
            return await viewers.add(accounts, engine, viewer, users, access, by(reason))

    password = run(work())
    if as_json:
        facts: dict[str, object] = {"viewer": viewer, "password": password, "users": users}
        answer(facts | _place(viewer, mqtt))
        return
    typer.echo(
        f"Viewer {viewer}, which must also be its client id, may publish to attempts/v1/{viewer}"
        f" and progress/v1/{viewer}, and subscribe to result/{viewer} and progress/{viewer}."
        if mqtt
        else f"Viewer {viewer} may publish to {amqp.INGEST_EXCHANGE} as"
        f" {amqp.attempts_key(viewer)} and {amqp.progress_request_key(viewer)}, and read"
        f" {amqp.results_queue(viewer)} and {amqp.progress_queue(viewer)}."
    )
    typer.echo(
        f"It may write for user {', '.join(map(str, users))}."
        if users
        else f"It may not write for any user yet: run study-ingest viewer grant {viewer} --user N"
    )
    typer.echo(f"Password (shown only once): {password}")


def import_file(
    file: Lines,
    mqtt: Annotated[
        bool,
        typer.Option("--mqtt", help="Use MQTT only, for browsers (see INGEST_MQTT_EXCHANGE)."),
    ] = False,
    reason: Reason = "",
    as_json: JsonLines = False,
) -> None:
    """Sees to it that many viewers exist and may write for their users.

    Each line has viewer and user_id; a viewer with several users has several lines. A viewer that
    exists keeps its password and its other grants, and gets its results queue back if that has
    expired. So a sign-up service can call this for each device, as often as it likes.

    Example: echo '{"viewer": "phone-3f2a", "user_id": 42}' | study-ingest viewer import -
    """
    from worker.operate import viewers
    from worker.operate.viewer_lines import read

    settings = load_settings()
    access = viewers.Access(_mqtt_exchange(settings) if mqtt else None)
    with opened(file, ViewerError) as (source, is_csv):
        wanted = read(source, is_csv=is_csv)

    async def work() -> None:
        made = 0
        with bar("Importing", shown=not sys.stdout.isatty()) as progress:
            async with _servers(settings) as (accounts, engine):
                async for each in viewers.ensure(accounts, engine, wanted, access, by(reason)):
                    made += 1
                    progress(made, len(wanted))
                    _print(each, as_json)

    run(work())


def _print(ensured: "Ensured", as_json: bool) -> None:
    if as_json:
        facts = {"viewer": ensured.name, "password": ensured.password}
        answer(facts | {"granted": [*ensured.users]})
        return
    grants = f"new grants: {', '.join(map(str, ensured.users)) or 'none'}"
    if ensured.password is None:
        typer.echo(f"{ensured.name} existed; {grants}")
    else:
        typer.echo(f"{ensured.name} is new, with the password {ensured.password}; {grants}")


def grant(viewer: _NAME, user: _SOME_USERS, reason: Reason = "", as_json: Json = False) -> None:
    """Allows a viewer to write the history of more users.

    Example: study-ingest viewer grant phone-3f2a --user 42 --user 43
    """

    from worker.operate import viewers

    async def work() -> None:
        async with _servers(load_settings()) as (accounts, engine):
            await viewers.grant(accounts, engine, viewer, user, by(reason))

    run(work())
    _say(as_json, {"viewer": viewer, "granted": user}, f"Viewer {viewer} may write for {user}.")


def revoke(
    viewer: _NAME,
    user: Annotated[
        list[int] | None,
        typer.Option(
            "--user",
            min=1,
            max=2**63 - 1,
            help="Revoke only the grant for this user. The default is the whole viewer.",
        ),
    ] = None,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Revokes grants, or a whole viewer with its login, connections and waiting results.

    It takes effect at once: workers reject what the viewer has published and no worker has taken
    yet. What is already ingested stays.

    Example: study-ingest viewer revoke phone-3f2a
    """

    from worker.operate import viewers

    async def work() -> None:
        async with _servers(load_settings()) as (accounts, engine):
            if user:
                await viewers.withdraw(engine, viewer, user, by(reason))
            else:
                await viewers.revoke(accounts, engine, viewer, by(reason))

    run(work())
    said = f"Viewer {viewer} may no longer write for {user}." if user else None
    _say(
        as_json,
        {"viewer": viewer, "revoked": user or "all"},
        said or f"Viewer {viewer} is deleted.",
    )


def rotate(viewer: _NAME, reason: Reason = "", as_json: Json = False) -> None:
    """Gives a viewer a new password, closes its connections, and restores its permissions.

    Example: study-ingest viewer rotate phone-3f2a
    """

    from worker.operate import viewers

    async def work() -> str:
        async with _servers(load_settings()) as (accounts, engine):
            return await viewers.rotate(accounts, engine, viewer, by(reason))

    password = run(work())
    said = f"Password (shown only once): {password}"
    _say(as_json, {"viewer": viewer, "password": password}, said)


def upgrade(
    viewer: Annotated[list[str] | None, typer.Argument(metavar="VIEWER", help="A viewer.")] = None,
    everybody: Annotated[bool, typer.Option("--all", help="All viewers with a login.")] = False,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Gives viewers of an older version the queues and rights of this one.

    Passwords and connections stay. Run it once after an upgrade of study-ingest; running it again
    does no harm.

    Example: study-ingest viewer upgrade --all
    """
    from worker.operate import viewers

    if bool(viewer) is everybody:
        raise typer.BadParameter("name viewers, or take --all")

    async def work() -> list[str]:
        async with _servers(load_settings()) as (accounts, engine):
            wanted = None if everybody else viewer
            return await viewers.upgrade(accounts, engine, wanted, by(reason))

    upgraded = run(work())
    _say(as_json, {"upgraded": upgraded}, f"{len(upgraded)} viewers have this version's rights.")


def list_viewers(
    silent: Annotated[
        datetime | None,
        typer.Option(
            "--silent",
            parser=moment,
            metavar="TIME",
            help="Only viewers that are not connected, and of which nothing was heard since this"
            " age (7d) or time.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Lists every viewer with a login or a grant, and when it was last heard of.

    Example: study-ingest viewer list --silent 7d
    """

    from worker.operate import viewers

    async def work() -> list[viewers.Viewer]:
        async with _servers(load_settings()) as (accounts, engine):
            return await viewers.listed(accounts, engine, silent)

    found = run(work())
    if as_json:
        answer({"viewers": [_fields(viewer) for viewer in found]})
        return
    for viewer in found:
        ways = ["AMQP"] * viewer.has_login + ["MQTT"] * viewer.mqtt + ["HTTP"] * viewer.http
        typer.echo(
            f"{printable(viewer.name)}: {'login by ' + ', '.join(ways) if ways else 'no login'}; "
            + (f"may write for {', '.join(map(str, viewer.users))}" if viewer.users else "no grant")
            + f"; {printable(_heard(viewer))}"
        )
    if not found and silent is not None:
        typer.echo(f"No viewer has been silent since {silent:%Y-%m-%d %H:%M}.")
    elif not found:
        typer.echo("There are no viewers: create one with study-ingest viewer add NAME --user N")


def _fields(viewer: "Viewer") -> dict[str, object]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(viewer).items()
    }


def _heard(viewer: "Viewer") -> str:
    parts = []
    if (since := viewer.connected_since) is not None:
        parts.append(f"connected since {_when(since)}")
    elif viewer.heard_at is None:
        parts.append("never heard of")
    else:
        parts.append(f"last heard of {_when(viewer.heard_at)}")
    if viewer.last_batch_at is not None:
        by = f" by {viewer.app}" if viewer.app else ""
        parts.append(f"last batch {_when(viewer.last_batch_at)}{by}")
    if viewer.results_waiting:
        parts.append(f"{viewer.results_waiting} results wait")
    if viewer.rejected_lately:
        parts.append(f"{viewer.rejected_lately} rejected in 7 days")
    return ", ".join(parts)


def _when(at: datetime) -> str:
    return at.isoformat(sep=" ", timespec="seconds")


def _mqtt_exchange(settings: "Settings") -> str:
    if settings.mqtt_exchange is None:
        raise SettingsError(
            "INGEST_MQTT_EXCHANGE is not set",
            "set it to the exchange of the broker's MQTT plugin,"
            " usually amq.topic, here and for the workers.",
        )
    return settings.mqtt_exchange


@asynccontextmanager
async def _servers(settings: "Settings") -> "AsyncIterator[tuple[Accounts, AsyncEngine]]":
    from worker.broker.accounts import Accounts
    from worker.store import schema

    async with (
        Accounts(settings) as accounts,
        engine_of(settings, connections=1, name="study-ingest viewer") as engine,
    ):
        await schema.check(engine)
        yield accounts, engine


def _place(viewer: str, mqtt: bool) -> dict[str, object]:
    if mqtt:
        topics = {"topic": f"attempts/v1/{viewer}", "subscription": f"result/{viewer}"}
        progress = {
            "progress_topic": f"progress/v1/{viewer}",
            "progress_subscription": f"progress/{viewer}",
        }
        return {"client_id": viewer, **topics, **progress}
    return {
        "exchange": amqp.INGEST_EXCHANGE,
        "routing_key": amqp.attempts_key(viewer),
        "results_queue": amqp.results_queue(viewer),
        "progress_routing_key": amqp.progress_request_key(viewer),
        "progress_queue": amqp.progress_queue(viewer),
    }


def _say(as_json: bool, facts: dict[str, object], sentence: str) -> None:
    if as_json:
        answer(facts)
    else:
        typer.echo(printable(sentence))
