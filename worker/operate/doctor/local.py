"""The findings about our own settings: the order of the timeouts, TLS, logins, heartbeat."""

from collections.abc import Iterator
from itertools import pairwise
from urllib.parse import urlsplit

from worker.operate.doctor.finding import Finding
from worker.settings import Settings, amqp_url

_LOOPBACK = ("localhost", "127.0.0.1", "::1", None)
_SLOW_HEARTBEAT = 60


def examine(settings: Settings) -> list[Finding]:
    """The findings."""
    return [
        *_timeouts(settings),
        *_heartbeat(settings),
        *_suspects(settings),
        *_tls(settings),
        *_login(settings),
        *_identity(settings),
    ]


def _timeouts(settings: Settings) -> Iterator[Finding]:
    order = (
        ("lock_timeout", settings.lock_timeout),
        ("statement_timeout", settings.statement_timeout),
        ("transaction_timeout", settings.transaction_timeout),
        ("stuck_timeout", settings.stuck_timeout),
    )
    wrong = False
    for (shorter, low), (longer, high) in pairwise(order):
        if low >= high:
            wrong = True
            yield Finding(
                "timeouts",
                "warning",
                f"{_name(shorter)} ({low:g} s) is not below {_name(longer)} ({high:g} s).",
                f"Lower {_name(shorter)} or raise {_name(longer)}, so that the inner one ends"
                " first.",
            )
    if not wrong:
        said = " < ".join(f"{name} {value:g} s" for name, value in order)
        yield Finding("timeouts", "ok", f"The timeouts end in the right order: {said}.")


def _heartbeat(settings: Settings) -> Iterator[Finding]:
    words = amqp_url.words(settings.brokers()[0])
    seconds = int(words.get("heartbeat", settings.heartbeat))
    if seconds == 0:
        yield Finding(
            "heartbeat",
            "danger",
            "The AMQP heartbeat is off, so a dead connection is never noticed.",
            "Remove heartbeat from INGEST_AMQP_URL, or give it about 10 seconds.",
        )
    elif seconds >= _SLOW_HEARTBEAT:
        yield Finding(
            "heartbeat",
            "warning",
            f"The AMQP heartbeat is {seconds} s, so a dead broker is noticed after {3 * seconds}"
            " s.",
            "Set INGEST_HEARTBEAT to about 10.",
        )
    else:
        yield Finding("heartbeat", "ok", f"A dead broker is noticed within {3 * seconds} s.")


def _suspects(settings: Settings) -> Iterator[Finding]:
    if settings.alone_after >= settings.delivery_limit:
        yield Finding(
            "suspects",
            "warning",
            f"The broker gives a batch up after {settings.delivery_limit} returns, before it"
            " would be"
            f" processed alone (after {settings.alone_after}). Good batches are given up with it.",
            "Set INGEST_ALONE_AFTER well below INGEST_DELIVERY_LIMIT.",
        )


def _tls(settings: Settings) -> Iterator[Finding]:
    unprotected = settings.unprotected()
    for variable in unprotected:
        yield Finding(
            "tls",
            "warning",
            f"{variable} leads over a network without verified TLS.",
            "Use amqps:// or https://, or ?sslmode=verify-full for PostgreSQL.",
        )
    if not unprotected:
        yield Finding("tls", "ok", "Every connection uses verified TLS or stays on this machine.")


def _login(settings: Settings) -> Iterator[Finding]:
    url = urlsplit(settings.brokers()[0])
    if (url.username or "guest") != "guest":
        yield Finding("login", "ok", "The login for the broker is not the default one.")
    elif _is_alone(settings):
        yield Finding(
            "login",
            "note",
            "The broker's default login guest is used on this machine.",
            "Create a login for the workers before others can reach the broker.",
        )
    else:
        yield Finding(
            "login",
            "danger",
            "The broker's default login guest is used over a network.",
            "Create a login for the workers, delete guest, and change INGEST_AMQP_URL.",
        )


def _identity(settings: Settings) -> Iterator[Finding]:
    if settings.require_user_id:
        yield Finding("identity", "ok", "Only verified viewers with grants may write.")
    else:
        yield Finding(
            "identity",
            "note" if _is_alone(settings) else "danger",
            "INGEST_REQUIRE_USER_ID is false, so anybody who can publish can write anybody's"
            " history.",
            "Unset INGEST_REQUIRE_USER_ID, and create viewers with `study-ingest viewer add`.",
        )


def _is_alone(settings: Settings) -> bool:
    """Whether the broker is on this machine."""
    return all(urlsplit(url).hostname in _LOOPBACK for url in settings.brokers())


def _name(setting: str) -> str:
    return f"INGEST_{setting.upper()}"
