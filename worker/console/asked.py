"""What a request asks for: filters in its address, fields in its form, and addresses of pages."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from starlette.requests import Request

from worker.errors import AddressError

AGES: Final = {
    "1h": timedelta(hours=1),
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "365d": timedelta(days=365),
}
"""The ages that a filter can have, by the word for the address."""
AGE_WORDS: Final = {
    "1h": "hour",
    "24h": "24 hours",
    "7d": "7 days",
    "30d": "30 days",
    "365d": "year",
}

_FORM_BYTES: Final = 64 * 1024
_REASON: Final = 500
_BIGGEST: Final = 2**63


def text(request: Request, name: str) -> str | None:
    """A filter's text. None if it is not given, or empty."""
    return request.query_params.get(name, "").strip() or None


def number(request: Request, name: str) -> int | None:
    """A filter's number, which fits into 64 bits. Raises `AddressError` if it is none."""
    given = text(request, name)
    return None if given is None else as_number(given, name)


def as_number(given: str, what: str) -> int:
    """Reads a whole number of 64 bits. Raises `AddressError`."""
    try:
        value = int(given) if len(given) < 20 else _BIGGEST
    except ValueError:
        raise AddressError(f"{what}: {given!r} is not a whole number", "enter one.") from None
    if not -_BIGGEST <= value < _BIGGEST:
        raise AddressError(f"{what}: {given[:40]!r} does not fit into 64 bits", "enter another.")
    return value


def moment(request: Request, name: str) -> datetime | None:
    """A filter's time in ISO 8601, which is UTC if it has no offset. Raises `AddressError`."""
    given = text(request, name)
    if given is None:
        return None
    try:
        at = datetime.fromisoformat(given)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise AddressError(
            f"{name}: {given[:60]!r} is no time", "write one as 2026-11-28T09:00."
        ) from None


def as_uuid(given: str) -> UUID:
    """Reads a uuid. Raises `AddressError`."""
    try:
        return UUID(given)
    except ValueError:
        raise AddressError(f"{given[:60]!r} is no uuid", "copy it as the viewer has it.") from None


def one_of(request: Request, name: str, words: Mapping[str, Any]) -> str | None:
    """A filter that is one of these words. Raises `AddressError` if it is another."""
    given = text(request, name)
    if given is not None and given not in words:
        raise AddressError(
            f"{name}: {given[:60]!r} is not known", f"use one of {', '.join(words)}."
        )
    return given


def address(path: str, **filters: object) -> str:
    """The address of a page with these filters; those that are None are left out."""
    given = {name: value for name, value in filters.items() if value is not None}
    return f"{path}?{urlencode(given, doseq=True)}" if given else path


def own_path(given: str) -> str:
    """A path on this server, for a redirection; the first page for anything else."""
    is_own = given.startswith("/") and not given.startswith(("//", "/\\")) and given.isprintable()
    return given if is_own else "/"


async def form(request: Request) -> dict[str, str]:
    """The fields of a form. Raises `AddressError` if it is none, or too long."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    body = b""
    if kind == "application/x-www-form-urlencoded":
        async for part in request.stream():
            body += part
            if len(body) > _FORM_BYTES:
                raise AddressError("The form is too long", "shorten it.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict"))
    except ValueError:
        raise AddressError("The form can't be read", "load the page again.") from None


def reason(fields: Mapping[str, str]) -> str:
    """The reason for an act. Raises `AddressError` without one."""
    given = " ".join(fields.get("reason", "").split())
    if not given:
        raise AddressError("No reason is given", "say why, for those who read the audit.")
    if len(given) > _REASON or not given.isprintable():
        raise AddressError(
            "The reason can't be kept", f"write up to {_REASON} printable characters."
        )
    return given
