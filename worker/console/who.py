"""Who uses the console: sign-in by a token or by a trusted proxy's header, roles, and seals.

Nothing is stored on the server. What a browser brings back (its session, a form, a link to a
report) has a seal that only this configuration can make: who changes a token ends all sessions and
links.
"""

import base64
import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from starlette.requests import Request

from worker.errors import SettingsError
from worker.settings import Settings

COOKIE: Final = "study-console"
SESSION_SECONDS: Final = 12 * 3600
_TOKEN_LENGTH: Final = 20
_NAME: Final = re.compile(r"[A-Za-z0-9._@+-]{1,64}")


class Role(IntEnum):
    """What a person may do. Each role includes the ones before it."""

    WATCH = 1
    """To see everything but what people answered."""
    LOOK = 2
    """To see everything."""
    ACT = 3
    """To see everything, and to do what operators do."""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who is signed in."""

    name: str
    role: Role
    session: str
    """What the seals of this person's forms are bound to."""
    by_proxy: bool = False

    @property
    def actor(self) -> str:
        """The name for the audit."""
        return f"{self.name} (console)"


class Entrance:
    """Knows who may come in, and makes and checks seals."""

    def __init__(
        self, settings: Settings, owner: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`owner` is who starts the console, and signs in where the settings name nobody.

        Raises `SettingsError` if a setting is not valid, or if the console can be reached from
        other machines and nobody could sign in.
        """
        given = settings.console_tokens
        self._people = {} if given is None else _people(given.get_secret_value())
        self._proxies = _networks(settings.console_proxy)
        self._header = settings.console_proxy_header
        self._roles = _roles(settings.console_proxy_roles)
        self._clock = clock
        self.made_token: str | None = None
        """The token of this process, where the settings have neither tokens nor a proxy."""
        if not self._people and not self._proxies:
            if not _is_loopback(settings.console_host):
                raise SettingsError(
                    f"INGEST_CONSOLE_HOST is {settings.console_host}, which other machines may"
                    " reach, and nobody could sign in",
                    "set INGEST_CONSOLE_TOKENS or INGEST_CONSOLE_PROXY.",
                )
            self.made_token = secrets.token_urlsafe(24)
            self._people[self.made_token] = (owner, Role.ACT)
        tokens = "\0".join(sorted(self._people))
        self._key = (
            hashlib.sha256(f"study-ingest console\0{tokens}".encode()).digest()
            if tokens
            else secrets.token_bytes(32)
        )

    def sign_in(self, token: str) -> str | None:
        """The session of the person with this token. None if nobody has it."""
        found = None
        for known, (name, _) in self._people.items():
            if hmac.compare_digest(known.encode(), token.encode()):
                found = name
        return None if found is None else self.seal("session", found, SESSION_SECONDS)

    def person(self, request: Request) -> Person | None:
        """Who sends the request. None if nobody is signed in."""
        if self.is_proxy(request) and len(names := request.headers.getlist(self._header)) == 1:
            name = names[0].strip()
            role = self._roles.get(name) or self._roles.get("*")
            known = name.isprintable() and 0 < len(name) <= 200
            return Person(name, role, f"proxy {name}", True) if role and known else None
        session = request.cookies.get(COOKIE, "")
        name = self.unseal("session", session)
        role = next((role for each, role in self._people.values() if each == name), None)
        return None if name is None or role is None else Person(name, role, session)

    def is_proxy(self, request: Request) -> bool:
        """Whether the request comes from a trusted proxy."""
        if request.client is None:
            return False
        try:
            address = ipaddress.ip_address(request.client.host)
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._proxies)

    def is_encrypted(self, request: Request) -> bool:
        """Whether the browser has sent the request by HTTPS, as far as that is known."""
        forwarded = self.is_proxy(request) and request.headers.get("x-forwarded-proto") == "https"
        return request.url.scheme == "https" or forwarded

    def form_seal(self, person: Person) -> str:
        """What each form of the person contains, so that no other site can send one."""
        return self._mac("form", person.session)

    def is_own_form(self, person: Person, seal: str) -> bool:
        """Whether a form with this seal was made for the person."""
        return hmac.compare_digest(self.form_seal(person).encode(), seal.encode())

    def seal(self, purpose: str, value: Any, seconds: float) -> str:
        """`value` (plain JSON) as a text that nobody can change, and that expires."""
        content = json.dumps([value, self._clock() + seconds]).encode()
        text = base64.urlsafe_b64encode(content).decode().rstrip("=")
        return f"{text}.{self._mac(purpose, text)}"

    def unseal(self, purpose: str, sealed: str) -> Any:
        """What was sealed for this purpose. None if it was not, or has expired."""
        text, _, mac = sealed.rpartition(".")
        if not hmac.compare_digest(self._mac(purpose, text).encode(), mac.encode()):
            return None
        value, expires = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        return value if self._clock() < expires else None

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.digest(self._key, f"{purpose}\0{text}".encode(), "sha256").hex()


def _people(text: str) -> dict[str, tuple[str, Role]]:
    """Reads `name:role:token,...`; the result is by token."""
    found: dict[str, tuple[str, Role]] = {}
    names = set()
    for number, each in enumerate(filter(None, map(str.strip, text.split(","))), 1):
        name, _, rest = each.partition(":")
        role, _, token = rest.partition(":")
        if name in names or token in found:
            raise _wrong("INGEST_CONSOLE_TOKENS", f"entry {number} has a name or a token twice")
        if len(token) < _TOKEN_LENGTH or not token.isascii():
            raise _wrong(
                "INGEST_CONSOLE_TOKENS",
                f"entry {number} is not name:role:token with a token of {_TOKEN_LENGTH} or more"
                " ASCII characters",
            )
        names.add(name)
        found[token] = (_name(name, "INGEST_CONSOLE_TOKENS"), _role(role, "INGEST_CONSOLE_TOKENS"))
    return found


def _roles(text: str) -> dict[str, Role]:
    """Reads `name:role,...`, where `*` stands for every other name."""
    variable = "INGEST_CONSOLE_PROXY_ROLES"
    found = {}
    for each in filter(None, map(str.strip, text.split(","))):
        name, _, role = each.rpartition(":")
        found[name if name == "*" else _name(name, variable)] = _role(role, variable)
    return found


def _name(name: str, variable: str) -> str:
    if not _NAME.fullmatch(name):
        raise _wrong(variable, f"{name!r} can't name a person")
    return name


def _role(word: str, variable: str) -> Role:
    try:
        return Role[word.upper()]
    except KeyError:
        raise _wrong(variable, f"{word!r} is no role: use watch, look or act") from None


def _networks(text: str | None) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    try:
        return [ipaddress.ip_network(each.strip()) for each in (text or "").split(",") if each]
    except ValueError as error:
        raise _wrong("INGEST_CONSOLE_PROXY", str(error)) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wrong(variable: str, found: str) -> SettingsError:
    return SettingsError(f"{variable} is not valid: {found}", "correct it.")
