"""The identities of viewers: a broker login with minimal rights for each, and grants for
principals.

A viewer may publish batches and requests for progress to one exchange, each with one routing key,
and read two queues. It may not declare anything, so its queues are created here. The broker then
vouches for the `user_id` of each message, and `viewer_grants` says whose history the viewer may
write and read.
"""

import secrets
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from worker.broker.accounts import Accounts, hashed
from worker.broker.management import Json
from worker.errors import TopologyError, ViewerError
from worker.store import audit
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.operate import grants
from worker.store.operate import viewers as stored

TAG: Final = "study-viewer"
"""The tag of broker users that these commands may change. They touch no others."""

_HTTP_TAG: Final = "management"
_LIMITS: Final = {"max-connections": 8, "max-channels": 32}
"""One outbox needs one connection with three channels. The rest is for dead connections."""
_PASSWORD_BYTES: Final = 24
_AT_ONCE: Final = 50
"""Viewers that `ensure` creates with one request. The broker needs some 15 ms for each."""
_NOTHING: Final = "^$"


@dataclass(frozen=True, slots=True)
class Access:
    """How a viewer connects."""

    mqtt: str | None = None
    """The exchange of the broker's MQTT plugin, for a viewer in a browser that uses MQTT only. None
    means AMQP.
    """
    http: bool = False
    """Whether it may also use the management API, which shows the names of queues. For trying
    things out.
    """


@dataclass(frozen=True, slots=True)
class Rights:
    """What a login may do in the vhost, as patterns of names. `topics` has the routing keys to
    publish with and to bind with, for each topic exchange.
    """

    configure: str
    write: str
    read: str
    topics: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Viewer:
    """A viewer: a name with a login, with grants, or (usually) with both."""

    name: str
    has_login: bool
    users: tuple[int, ...]
    mqtt: bool = False
    http: bool = False
    connected_since: datetime | None = None
    """None if it is not connected now."""
    results_waiting: int = 0
    """Those that it has not fetched."""
    heard_at: datetime | None = None
    """The newest time below. The broker forgets who was connected."""
    last_batch_at: datetime | None = None
    app: str | None = None
    """The program that published its last batch, if that is known."""
    asked_at: datetime | None = None
    """When it last asked for progress."""
    last_rejected_at: datetime | None = None
    rejected_lately: int = 0
    """Dead letters of the last 7 days; 1,000 means that or more."""

    def is_silent_since(self, then: datetime) -> bool:
        """Whether it is not connected, and nothing was heard of it since then."""
        return self.connected_since is None and (self.heard_at is None or self.heard_at < then)


def rights(viewer: str, access: Access) -> Rights:
    """The minimal rights with which `viewer` can work.

    The patterns need no escaping, because a viewer's name has only letters, digits, `-` and `_`.
    """
    key = f"^(attempts|progress)\\.v1\\.{viewer}$"
    topics = {amqp.INGEST_EXCHANGE: (key, _NOTHING)}
    if access.mqtt is None:
        read = f"^study\\.(results|progress)\\.{viewer}$"
        return Rights(_NOTHING, "^study\\.ingest$", read, topics)
    # A subscription is a queue that the plugin creates in the viewer's name. The queue is named
    # after the client id, which therefore must be the viewer's name.
    subscription = f"mqtt-subscription-{viewer}qos[01]"
    both = "^({}|{})$".format(access.mqtt.replace(".", "\\."), subscription)
    return Rights(
        f"^{subscription}$",
        both,
        both,
        topics | {access.mqtt: (key, f"^(result|progress)\\.{viewer}$")},
    )


async def add(
    accounts: Accounts,
    engine: AsyncEngine,
    viewer: str,
    users: Collection[int],
    access: Access,
    by: By,
) -> str:
    """Creates a viewer that may write for `users`. Returns its password, which is not stored
    anywhere.

    Raises `ViewerError` if the name is not valid, or if a broker user already has it.
    """
    _check_name(viewer)
    if viewer in await accounts.users([viewer]):
        raise ViewerError(
            f"The broker has a user {viewer!r} already",
            "`study-ingest viewer rotate` gives a viewer a new password, or choose another name.",
        )
    # The grants come first: until the login exists, nobody can use them.
    async with transaction(engine) as connection:
        await grants.add(connection, viewer, users)
    password = await _equip(accounts, viewer, access)
    async with transaction(engine) as connection:
        effect = {"users": [*users], "mqtt": access.mqtt is not None, "http": access.http}
        await audit.record(connection, by, "viewer add", f"viewer {viewer}", effect)
    return password


@dataclass(frozen=True, slots=True)
class Ensured:
    """A viewer that exists now."""

    name: str
    password: str | None
    """None if it existed before."""
    users: tuple[int, ...]
    """Those of the given users whose grant is new."""


async def ensure(
    accounts: Accounts,
    engine: AsyncEngine,
    wanted: Mapping[str, Collection[int]],
    access: Access,
    by: By,
) -> AsyncIterator[Ensured]:
    """Sees to it that each viewer exists and may write for these users, in the order of `wanted`.

    An existing viewer keeps its password and its other grants, and gets its results queue back if
    that has expired. Raises `ViewerError`, before anything is changed, for a name that is not
    valid or belongs to a login that is no viewer's, and `TopologyError` for a broker that is not
    set up.
    """
    for viewer in wanted:
        _check_name(viewer)
    await _check_exchange(accounts)
    # The broker may have thousands of viewers.
    few = wanted.keys() if len(wanted) <= _AT_ONCE else None
    logins = await accounts.users(few)
    for viewer in wanted:
        if viewer in logins and TAG not in logins[viewer]["tags"]:
            raise ViewerError(
                f"The broker's user {viewer!r} is no viewer",
                "choose another name for the viewer.",
            )
    here = await accounts.permissions(few)
    queues = await accounts.queue_names(
        few and [queue for viewer in few for queue, _ in _queues(viewer, access)]
    )
    async with transaction(engine) as connection:
        granted = await grants.add_all(connection, wanted)

    names = [*wanted]
    made = 0
    try:
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            new = {
                viewer: secrets.token_urlsafe(_PASSWORD_BYTES)
                for viewer in some
                if viewer not in logins or viewer not in here
            }
            lacking = [
                (queue, key)
                for viewer in some
                for queue, key in _queues(viewer, access)
                if queue not in queues
            ]
            if new or lacking:
                may = dict.fromkeys(new, access)
                await accounts.define(_definitions(accounts.vhost, may, new, lacking))
            made += len(new)
            for viewer in some:
                yield Ensured(viewer, new.get(viewer), tuple(granted.get(viewer, ())))
    finally:
        if made or granted:
            async with transaction(engine) as connection:
                effect = {"made": made, "grants": sum(map(len, granted.values()))}
                await audit.record(connection, by, "viewer import", "viewers", effect)


async def _check_exchange(accounts: Accounts) -> None:
    """Raises `TopologyError` where a definition would silently bind nothing."""
    if amqp.RESULTS_EXCHANGE not in {each["name"] for each in await accounts.exchanges()}:
        raise TopologyError(
            f"Exchange {amqp.RESULTS_EXCHANGE} is missing",
            "run `study-ingest topology`.",
        )


def _check_name(viewer: str) -> None:
    if not amqp.is_viewer(viewer):
        raise ViewerError(
            f"{viewer!r} can't name a viewer",
            "take 1 to 64 letters, digits, '-' or '_'.",
        )


async def rotate(accounts: Accounts, engine: AsyncEngine, viewer: str, by: By) -> str:
    """Gives the viewer a new password, closes its connections, and restores its permissions.

    Raises `ViewerError` if there is no such viewer.
    """
    access = await _access(accounts, viewer)
    password = await _equip(accounts, viewer, access)
    await accounts.close_connections(viewer)
    async with transaction(engine) as connection:
        await audit.record(connection, by, "viewer rotate", f"viewer {viewer}", {})
    return password


async def upgrade(
    accounts: Accounts, engine: AsyncEngine, viewers: Collection[str] | None, by: By
) -> list[str]:
    """Gives viewers what a viewer of this version gets: their queues, limits and permissions. None
    means all viewers with a login. Returns their names.

    Passwords and connections stay. It may be run again. Raises `ViewerError` if there is no such
    viewer; then nothing is changed.
    """
    access = await _accesses(accounts)
    names = sorted(access if viewers is None else viewers)
    for viewer in names:
        if viewer not in access:
            raise _no_viewer(viewer)
    await _check_exchange(accounts)
    logins = await accounts.users()
    for start in range(0, len(names), _AT_ONCE):
        some = {viewer: access[viewer] for viewer in names[start : start + _AT_ONCE]}
        queues = [each for viewer in some for each in _queues(viewer, some[viewer])]
        await accounts.define(_definitions(accounts.vhost, some, {}, queues))
        for viewer in some:
            if logins[viewer].get("limits") != _LIMITS:
                await accounts.limit_user(viewer, _LIMITS)
    if names:
        async with transaction(engine) as connection:
            subject = f"viewer {names[0]}" if len(names) == 1 else f"{len(names)} viewers"
            await audit.record(connection, by, "viewer upgrade", subject, {"viewers": len(names)})
    return names


async def revoke(accounts: Accounts, engine: AsyncEngine, viewer: str, by: By) -> None:
    """Deletes the viewer: its grants, login, connections, and the results that wait for it.

    Workers reject what it has published and no worker has taken yet, because its grant is gone.
    Raises `ViewerError` if nothing of the viewer exists.
    """
    async with transaction(engine) as connection:
        had_grants = await grants.remove(connection, viewer, None)
        if had_grants:
            await audit.record(connection, by, "viewer revoke", f"viewer {viewer}", {})
    try:
        await _access(accounts, viewer)
    except ViewerError:
        if not had_grants:
            raise
    else:
        if not had_grants:
            async with transaction(engine) as connection:
                await audit.record(connection, by, "viewer revoke", f"viewer {viewer}", {})
        await accounts.delete_user(viewer)
        await accounts.close_connections(viewer)
        # The next viewer with this name must not read the results of this one.
        await accounts.delete_queues(*_results_queues(viewer), amqp.progress_queue(viewer))


async def grant(
    accounts: Accounts, engine: AsyncEngine, viewer: str, users: Collection[int], by: By
) -> None:
    """Allows the viewer to write for more `users`. Granting again makes no difference.

    Raises `ViewerError` if the broker has no user of this name.
    """
    _check_name(viewer)
    if viewer not in await accounts.users([viewer]):
        raise ViewerError(
            f"The broker has no user {viewer!r}",
            "`study-ingest viewer add` creates a viewer, and"
            " `study-ingest viewer list` names them.",
        )
    async with transaction(engine) as connection:
        if await grants.add(connection, viewer, users):
            effect = {"users": [*users]}
            await audit.record(connection, by, "viewer grant", f"viewer {viewer}", effect)


async def withdraw(engine: AsyncEngine, viewer: str, users: Collection[int], by: By) -> None:
    """Revokes the grants for `users`. Raises `ViewerError` if the viewer had none of them."""
    async with transaction(engine) as connection:
        if not await grants.remove(connection, viewer, users):
            raise ViewerError(f"Viewer {viewer!r} has no such grant.")
        effect = {"users": [*users]}
        await audit.record(connection, by, "viewer revoke", f"viewer {viewer}", effect)


async def listed(
    accounts: Accounts, engine: AsyncEngine, silent_since: datetime | None = None
) -> list[Viewer]:
    """All viewers that have a login in this vhost or a grant, by name. With `silent_since` only
    those that are not connected, and of which nothing was heard since then.
    """
    logins = await _logins(accounts)
    topics = {
        user
        for user, exchange in await accounts.topic_permissions()
        if exchange != amqp.INGEST_EXCHANGE
    }
    connected = await accounts.connected()
    waiting = await accounts.depths()
    async with transaction(engine) as connection:
        granted = await grants.all_of(connection)
        names = sorted({*logins, *granted})
        traces = await stored.traces(connection, names)
    found = [
        Viewer(
            name,
            name in logins,
            tuple(granted.get(name, ())),
            mqtt=name in topics,
            http=_HTTP_TAG in logins.get(name, ()),
            connected_since=connected.get(name),
            results_waiting=sum(waiting.get(queue, 0) for queue in _results_queues(name)),
            heard_at=traces[name].heard_at,
            **traces[name]._asdict(),
        )
        for name in names
    ]
    if silent_since is None:
        return found
    return [each for each in found if each.is_silent_since(silent_since)]


def _results_queues(viewer: str) -> tuple[str, ...]:
    """The queues that may exist for the viewer's results, by AMQP and by MQTT. None for a name that
    no viewer can have, to which a grant was given by hand.
    """
    if not amqp.is_viewer(viewer):
        return ()
    return (
        amqp.results_queue(viewer),
        *(f"mqtt-subscription-{viewer}qos{qos}" for qos in (0, 1)),
    )


async def _equip(accounts: Accounts, viewer: str, access: Access) -> str:
    """Creates the viewer's queues, login and permissions at the broker; returns the password."""
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    await _make_queues(accounts, viewer, access)
    await accounts.put_user(viewer, password, [TAG, _HTTP_TAG] if access.http else [TAG])
    await _permit(accounts, viewer, access)
    return password


def _definitions(
    vhost: str,
    viewers: Mapping[str, Access],
    passwords: Mapping[str, str],
    queues: Sequence[tuple[str, str]],
) -> dict[str, list[Json]]:
    """The rights of viewers, the logins of those with a password, and queues with their keys, as
    `Accounts.define` takes them.

    The broker gives a new login its rights one after another, but nobody knows its password yet.
    """
    there = {"vhost": vhost}
    may = {viewer: rights(viewer, access) for viewer, access in viewers.items()}
    return {
        "users": [
            {"name": viewer, "tags": [TAG], "limits": _LIMITS, **hashed(password)}
            for viewer, password in passwords.items()
        ],
        "permissions": [
            there | {"user": viewer, "configure": m.configure, "write": m.write, "read": m.read}
            for viewer, m in may.items()
        ],
        "topic_permissions": [
            there | {"user": viewer, "exchange": exchange, "write": write, "read": read}
            for viewer, m in may.items()
            for exchange, (write, read) in m.topics.items()
        ],
        "queues": [
            there | {"name": queue, "durable": True, "auto_delete": False, "arguments": {}}
            for queue, _ in queues
        ],
        "bindings": [
            there
            | {"source": amqp.RESULTS_EXCHANGE, "destination": queue, "destination_type": "queue"}
            | {"routing_key": key, "arguments": {}}
            for queue, key in queues
        ],
    }


def _queues(viewer: str, access: Access) -> list[tuple[str, str]]:
    """The viewer's queues, each with the routing key of what arrives in it."""
    if access.mqtt is not None:  # its subscriptions are queues, which the broker makes
        return []
    return [
        (amqp.results_queue(viewer), amqp.result_key(viewer)),
        (amqp.progress_queue(viewer), amqp.progress_key(viewer)),
    ]


async def _make_queues(accounts: Accounts, viewer: str, access: Access) -> None:
    for queue, key in _queues(viewer, access):
        await accounts.declare_queue(queue, {})
        await accounts.bind(amqp.RESULTS_EXCHANGE, queue, key)


async def _permit(accounts: Accounts, viewer: str, access: Access) -> None:
    may = rights(viewer, access)
    await accounts.limit_user(viewer, _LIMITS)
    for exchange, (write, read) in may.topics.items():
        # Set the topic permissions first. Without them, write access covers every routing key.
        await accounts.permit_topics(viewer, exchange, write=write, read=read)
    await accounts.permit(viewer, configure=may.configure, write=may.write, read=may.read)


async def _logins(accounts: Accounts, among: Collection[str] | None = None) -> dict[str, list[str]]:
    """The tags of each viewer with a login in this vhost, or of those `among` some names."""
    here = await accounts.permissions(among)
    return {
        name: user["tags"]
        for name, user in (await accounts.users(among)).items()
        if TAG in user["tags"] and name in here
    }


async def _access(accounts: Accounts, viewer: str) -> Access:
    found = await _accesses(accounts, [viewer]) if amqp.is_viewer(viewer) else {}
    if viewer not in found:
        raise _no_viewer(viewer)
    return found[viewer]


async def _accesses(accounts: Accounts, among: Collection[str] | None = None) -> dict[str, Access]:
    """How each viewer with a login in this vhost connects, or each of those `among` some names."""
    mqtt = {
        user: exchange
        for user, exchange in await accounts.topic_permissions()
        if exchange != amqp.INGEST_EXCHANGE
    }
    return {
        viewer: Access(mqtt.get(viewer), _HTTP_TAG in tags)
        for viewer, tags in (await _logins(accounts, among)).items()
    }


def _no_viewer(viewer: str) -> ViewerError:
    return ViewerError(
        f"There is no viewer {viewer!r}",
        "`study-ingest viewer list` names them.",
    )
