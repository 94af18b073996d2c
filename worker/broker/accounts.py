"""The part of the management API that manages logins: users, permissions and connections.

It needs a login with the tag `administrator`. What a viewer is, `worker/operate/viewers.py` knows.
"""

import base64
import hashlib
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from urllib.parse import quote

from worker.broker.management import Json, Management


class Accounts(Management):
    """Users and permissions in the vhost of `settings.amqp_url`. Raises as `Management` does."""

    async def users(self, names: Iterable[str] | None = None) -> dict[str, Json]:
        """Every user of the broker, or those with these names, by name, with `tags`."""
        found: list[Json] = (
            await self._get("users")
            if names is None
            else await self._find(f"users/{_path(name)}" for name in names)
        )
        return {user["name"]: user for user in found}

    async def put_user(self, name: str, password: str, tags: Collection[str]) -> None:
        """Creates a user, or changes its password and tags.

        Only a salted hash of the password leaves this process, in the form in which the broker
        keeps it.
        """
        await self._send("PUT", f"users/{_path(name)}", hashed(password) | {"tags": ",".join(tags)})

    async def define(self, definitions: Mapping[str, Sequence[Json]]) -> None:
        """Creates many objects with one request: lists of `users`, `permissions`,
        `topic_permissions`, `queues` and `bindings`, as the broker exports its definitions.

        Queues and bindings that exist stay as they are.
        """
        await self._send("POST", "definitions", dict(definitions))

    async def limit_user(self, name: str, limits: Mapping[str, int]) -> None:
        """Limits a user's `max-connections` and `max-channels` over all vhosts."""
        for limit, value in limits.items():
            await self._send("PUT", f"user-limits/{_path(name)}/{limit}", {"value": value})

    async def delete_user(self, name: str) -> None:
        """Deletes a user with all of its permissions."""
        await self._send("DELETE", f"users/{_path(name)}")

    async def close_connections(self, name: str) -> None:
        """Closes every connection of this user."""
        await self._send("DELETE", f"connections/username/{_path(name)}")

    async def permissions(self, users: Iterable[str] | None = None) -> dict[str, Json]:
        """The permissions in the vhost by user, of all or of these: `configure`, `write` and
        `read`.
        """
        found: list[Json] = (
            await self._get(f"vhosts/{self._vhost}/permissions")
            if users is None
            else await self._find(f"permissions/{self._vhost}/{_path(user)}" for user in users)
        )
        return {each["user"]: each for each in found}

    async def permit(self, name: str, *, configure: str, write: str, read: str) -> None:
        """Sets a user's permissions in the vhost, as patterns of names of exchanges and queues."""
        await self._send(
            "PUT",
            f"permissions/{self._vhost}/{_path(name)}",
            {"configure": configure, "write": write, "read": read},
        )

    async def permit_topics(self, name: str, exchange: str, *, write: str, read: str) -> None:
        """Sets the routing keys with which a user may publish to, and bind to, a topic exchange."""
        await self._send(
            "PUT",
            f"topic-permissions/{self._vhost}/{_path(name)}",
            {"exchange": exchange, "write": write, "read": read},
        )

    async def topic_permissions(self) -> set[tuple[str, str]]:
        """Each (user, exchange) in the vhost that has topic permissions."""
        found: list[Json] = await self._get(f"vhosts/{self._vhost}/topic-permissions")
        return {(each["user"], each["exchange"]) for each in found}

    async def delete_queues(self, *names: str) -> None:
        """Deletes queues with their messages. A queue that does not exist is no error."""
        for name in await self.queue_names(among=names):
            await self._send("DELETE", f"queues/{self._vhost}/{_path(name)}")


def hashed(password: str) -> Json:
    """What the broker keeps of a password."""
    salt = secrets.token_bytes(4)
    digest = hashlib.sha256(salt + password.encode()).digest()
    return {
        "password_hash": base64.b64encode(salt + digest).decode(),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
    }


def _path(name: str) -> str:
    return quote(name, safe="")
