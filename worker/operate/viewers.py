"""Viewers' identities: a broker login each, with the least that works, and grants of principals.

A viewer may publish to one exchange under one routing key and read one queue; it may configure
nothing, so that queue is made here. The broker then vouches for each message's `user_id`, and
the transaction asks `viewer_grants` whose history the viewer may write. Knows the broker through
`broker/accounts.py` and grants through `store/grants.py`; prints nothing.
"""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from worker.broker.accounts import Accounts
from worker.errors import ViewerError
from worker.store.engine import transaction
from worker.store.operate import grants

TAG: Final = "study-viewer"
"""Marks the broker users that are ours to change: no command here touches another."""

_HTTP_TAG: Final = "management"
_LIMITS: Final = {"max-connections": 8, "max-channels": 32}
"""One outbox needs one connection of three channels; the rest is for those that died unnoticed."""
_PASSWORD_BYTES: Final = 24
_NOTHING: Final = "^$"


@dataclass(frozen=True, slots=True)
class Access:
    """How a viewer comes in."""

    mqtt: str | None = None
    """The exchange of the broker's MQTT plugin: by that alone, for a viewer in a browser. None:
    by AMQP."""
    http: bool = False
    """Also by the management API, which shows its user names of queues: for a first try."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What a login may do in the vhost, as patterns of names; `topics` has, for each topic
    exchange, the routing keys to publish under and to bind with.
    """

    configure: str
    write: str
    read: str
    topics: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Viewer:
    """A viewer as it stands: a name with a login, with grants, or (in order) with both."""

    name: str
    has_login: bool
    users: tuple[int, ...]
    mqtt: bool = False
    http: bool = False


def rights(viewer: str, access: Access) -> Rights:
    """The least with which `viewer` can do its work.

    The patterns need no escaping: a viewer's name is letters, digits, `-` and `_`.
    """
    key = f"^attempts\\.v1\\.{viewer}$"
    topics = {amqp.INGEST_EXCHANGE: (key, _NOTHING)}
    if access.mqtt is None:
        return Rights(_NOTHING, "^study\\.ingest$", f"^study\\.results\\.{viewer}$", topics)
    # A subscription is a queue that the plugin makes in the viewer's name. It is named after the
    # client id, which must be the viewer's name for that.
    subscription = f"mqtt-subscription-{viewer}qos[01]"
    both = "^({}|{})$".format(access.mqtt.replace(".", "\\."), subscription)
    return Rights(
        f"^{subscription}$", both, both, topics | {access.mqtt: (key, f"^result\\.{viewer}$")}
    )


async def add(
    accounts: Accounts, engine: AsyncEngine, viewer: str, users: Collection[int], access: Access
) -> str:
    """Makes a viewer that may write for `users`; returns its password, which is kept nowhere.

    Raises `ViewerError` when the name is no viewer's name, or a broker user has it already.
    """
    if not amqp.is_viewer(viewer):
        raise ViewerError(
            f"{viewer!r} can't name a viewer: take 1 to 64 letters, digits, '-' or '_'."
        )
    if viewer in await accounts.users():
        raise ViewerError(
            f"The broker has a user {viewer!r} already: `study-ingest viewer rotate` gives a"
            " viewer a new password, or choose another name."
        )
    if users:
        await grant(engine, viewer, users)
    return await _equip(accounts, viewer, access)


async def rotate(accounts: Accounts, viewer: str) -> str:
    """Gives the viewer a new password, ends its connections, and puts its rights in order.

    Raises `ViewerError` when there is no such viewer.
    """
    access = await _access(accounts, viewer)
    password = await _equip(accounts, viewer, access)
    await accounts.close_connections(viewer)
    return password


async def revoke(accounts: Accounts, engine: AsyncEngine, viewer: str) -> None:
    """Ends the viewer: grants, login, connections, and the results that wait for it.

    What it had published and no worker has taken yet is refused for want of a grant. Raises
    `ViewerError` when nothing of the viewer is there.
    """
    async with transaction(engine) as connection:
        had_grants = await grants.remove(connection, viewer, None)
    try:
        await _access(accounts, viewer)
    except ViewerError:
        if not had_grants:
            raise
    else:
        await accounts.delete_user(viewer)
        await accounts.close_connections(viewer)
        # Who is given the name next must not read what was meant for this one.
        await accounts.delete_queues(
            amqp.results_queue(viewer), *(f"mqtt-subscription-{viewer}qos{qos}" for qos in (0, 1))
        )


async def grant(engine: AsyncEngine, viewer: str, users: Collection[int]) -> None:
    """Lets the viewer write for `users` as well; granting again makes no difference."""
    async with transaction(engine) as connection:
        await grants.add(connection, viewer, users)


async def withdraw(engine: AsyncEngine, viewer: str, users: Collection[int]) -> None:
    """Takes the grants for `users` back. Raises `ViewerError` when it had none of them."""
    async with transaction(engine) as connection:
        if not await grants.remove(connection, viewer, users):
            raise ViewerError(f"Viewer {viewer!r} has no such grant.")


async def listed(accounts: Accounts, engine: AsyncEngine) -> list[Viewer]:
    """Every viewer that has a login in this vhost or a grant, by name."""
    logins = await _logins(accounts)
    topics = {
        user
        for user, exchange in await accounts.topic_permissions()
        if exchange != amqp.INGEST_EXCHANGE
    }
    async with transaction(engine) as connection:
        granted = await grants.all_of(connection)
    return [
        Viewer(
            name,
            name in logins,
            tuple(granted.get(name, ())),
            mqtt=name in topics,
            http=_HTTP_TAG in logins.get(name, ()),
        )
        for name in sorted({*logins, *granted})
    ]


async def _equip(accounts: Accounts, viewer: str, access: Access) -> str:
    """Everything that a viewer needs at the broker; the order leaves no moment of too much."""
    may = rights(viewer, access)
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    if access.mqtt is None:
        queue = amqp.results_queue(viewer)
        await accounts.declare_queue(queue, {})
        await accounts.bind(amqp.RESULTS_EXCHANGE, queue, amqp.result_key(viewer))
    await accounts.put_user(viewer, password, [TAG, _HTTP_TAG] if access.http else [TAG])
    await accounts.limit_user(viewer, _LIMITS)
    for exchange, (write, read) in may.topics.items():
        # Before the permission to write: without these every routing key would be allowed.
        await accounts.permit_topics(viewer, exchange, write=write, read=read)
    await accounts.permit(viewer, configure=may.configure, write=may.write, read=may.read)
    return password


async def _logins(accounts: Accounts) -> dict[str, list[str]]:
    """The tags of each viewer with a login in this vhost."""
    here = await accounts.permissions()
    return {
        name: user["tags"]
        for name, user in (await accounts.users()).items()
        if TAG in user["tags"] and name in here
    }


async def _access(accounts: Accounts, viewer: str) -> Access:
    tags = (await _logins(accounts)).get(viewer)
    if tags is None:
        raise ViewerError(f"There is no viewer {viewer!r}: `study-ingest viewer list` names them.")
    mqtt = next(
        (
            exchange
            for user, exchange in await accounts.topic_permissions()
            if user == viewer and exchange != amqp.INGEST_EXCHANGE
        ),
        None,
    )
    return Access(mqtt, _HTTP_TAG in tags)
