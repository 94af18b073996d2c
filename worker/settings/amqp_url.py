"""The broker's URL: every word of it is followed, or refused in one sentence.

    amqps://user:password@host:port/vhost?word=value&word=value

Pure: says what an URL asks for; the files that it names are read by others. The words are those of
the client, and RabbitMQ's own (https://www.rabbitmq.com/docs/uri-query-parameters) are refused with
the client's word for them.
"""

import binascii
from base64 import b64decode
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, urlsplit

_TEXTS: Final = ("cafile", "capath", "cadata", "certfile", "keyfile")
"""Words that can have any value. They count for the management API as well."""
_NUMBERS: Final = ("heartbeat", "interleave", "happy_eyeballs_delay")
_AUTH: Final = ("plain", "external")

_REFUSED: Final[Mapping[str, str]] = {
    "no_verify_ssl": "lets anybody pose as the broker: give its authority with cafile instead",
    "timeout": "is not followed: set INGEST_CONNECT_TIMEOUT instead",
    "connection_timeout": "is not followed: set INGEST_CONNECT_TIMEOUT instead",
    "name": "is not followed: workers name their connections themselves",
    "cacertfile": "is called cafile here",
    "auth_mechanism": "is called auth here",
    "verify": "is not needed: the broker is always verified",
    "fail_if_no_peer_cert": "is not needed: the broker is always verified",
    "server_name_indication": "has no counterpart in the client: remove it",
    "depth": "has no counterpart in the client: remove it",
    "password": "has no counterpart in the client: use a key without a password",
    "channel_max": "has no counterpart in the client: remove it",
    "frame_max": "has no counterpart in the client: remove it",
    "reconnect_interval": "is not followed: workers reconnect by INGEST_PAUSE_DELAY_MIN and _MAX",
    "fail_fast": "is not followed: workers reconnect by INGEST_PAUSE_DELAY_MIN and _MAX",
}

_LONGEST_SHOWN: Final = 40


def words(url: str) -> dict[str, str]:
    """The words of an URL with their values. Raises `ValueError` with a sentence that says nothing
    of the password.
    """
    found: dict[str, str] = {}
    for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if "@" in name:  # it may be the end of a password
            raise ValueError("the URL is not valid: write special characters in its login as %XX")
        if name in _REFUSED:
            raise ValueError(f"{name} {_REFUSED[name]}")
        if name not in (*_TEXTS, *_NUMBERS, "auth"):
            raise ValueError(
                f"the broker's URLs know no word {name[:_LONGEST_SHOWN]!r}: correct or remove it"
            )
        if not value:
            raise ValueError(f"{name} has no value: give it one, or remove it")
        found[name] = value
    for name in _NUMBERS:
        if name in found and not _is_number(found[name], whole=name != "happy_eyeballs_delay"):
            raise ValueError(f"{name} must be a number that is not negative")
    if found.get("auth", "plain").lower() not in _AUTH:
        raise ValueError(f"auth must be {' or '.join(_AUTH)}")
    if "keyfile" in found and "certfile" not in found:
        raise ValueError("keyfile needs certfile")
    try:
        b64decode(found.get("cadata", ""), validate=True)
    except binascii.Error:
        raise ValueError("cadata must be certificates in DER, in base64") from None
    return found


def host(url: str) -> str:
    """The host of an URL as it is written in one: an IPv6 address in brackets."""
    name = urlsplit(url).hostname or ""
    return f"[{name}]" if ":" in name else name


def _is_number(text: str, *, whole: bool) -> bool:
    digits = text if whole else text.replace(".", "", 1)
    return digits.isascii() and digits.isdigit()
