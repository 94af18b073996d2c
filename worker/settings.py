"""Every setting of the worker, its default, and why that default.

Each field is read from the environment as `INGEST_` and its name in capitals. Times are in
seconds unless the name says otherwise. Nothing else in the project reads the environment.
"""

from typing import Annotated, Final
from urllib.parse import SplitResult, parse_qs, urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.attempt_batch import MAX_ATTEMPTS, MAX_BODY_BYTES
from worker.errors import SettingsError

Seconds = Annotated[float, Field(gt=0)]

_VERIFIED: Final = "verify-full"
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1", None)


def _parsed(url: SecretStr) -> SplitResult:
    """Taken apart here, because a parser's own error would show half a password."""
    try:
        parts = urlsplit(url.get_secret_value())
        _ = parts.port
    except ValueError:
        raise ValueError(
            "the URL can't be read: write special characters of its login as %XX"
        ) from None
    return parts


def _postgresql(url: SecretStr) -> SecretStr:
    parts = _parsed(url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("the URL must begin with postgresql://")
    mode = parse_qs(parts.query).get("sslmode", [_VERIFIED])[0]
    if mode not in ("disable", _VERIFIED):
        raise ValueError(
            f"sslmode must be {_VERIFIED} (with sslrootcert, unless the system knows the"
            " authority) or disable, since no other verifies the server"
        )
    return url


def _amqp(url: SecretStr) -> SecretStr:
    parts = _parsed(url)
    if parts.scheme not in ("amqp", "amqps"):
        raise ValueError("the URL must begin with amqp:// or amqps://")
    if "no_verify_ssl" in parse_qs(parts.query, keep_blank_values=True):
        raise ValueError(
            "no_verify_ssl would let anybody pose as the broker: name its authority with cafile"
        )
    return url


def _http(url: SecretStr | None) -> SecretStr | None:
    if url is not None and _parsed(url).scheme not in ("http", "https"):
        raise ValueError("the URL must begin with http:// or https://")
    return url


class Settings(BaseSettings):
    """What an operator may change without changing code."""

    model_config = SettingsConfigDict(env_prefix="INGEST_", frozen=True, extra="ignore")

    database_url: Annotated[SecretStr, AfterValidator(_postgresql)] = Field(
        description="PostgreSQL, as postgresql://user:password@host:port/database."
    )
    amqp_url: Annotated[SecretStr, AfterValidator(_amqp)] = Field(
        description="RabbitMQ, as amqp://user:password@host:port/vhost."
    )
    management_url: Annotated[SecretStr | None, AfterValidator(_http)] = Field(
        default=None,
        description="RabbitMQ's management API, as http://user:password@host:port. Default: "
        "the AMQP URL's host and login at port 15672 (15671 for amqps).",
    )
    enabled: bool = Field(
        default=True, description="The gate: false leaves every message in the queue."
    )

    require_user_id: bool = Field(
        default=True,
        description="Default deny: refuse messages whose publisher the broker did not validate "
        "(AMQP property user_id), and viewers without a grant. False is for local use alone: "
        "whoever can publish then writes anybody's history.",
    )
    mqtt_exchange: str | None = Field(
        default=None,
        description="The exchange of the broker's MQTT plugin (amq.topic, unless it was told "
        "otherwise), for viewers in a browser; none: there are none. What comes by it has no "
        "user_id: its topic, which the broker checks, names the viewer.",
    )
    max_body_bytes: int = Field(
        default=MAX_BODY_BYTES, gt=0, description="A larger body is rejected unread."
    )
    max_attempts: int = Field(
        default=MAX_ATTEMPTS, gt=0, description="More attempts than this are rejected."
    )

    prefetch: int = Field(
        default=200,
        ge=1,
        le=65_535,
        description="Deliveries in hand at once: a group in work, one waiting, and up to half whose"
        " acks wait for an earlier one.",
    )
    group_max: int = Field(
        default=50,
        ge=1,
        description="Most batches in one transaction: more gains little and holds locks longer.",
    )
    lanes: int = Field(
        default=1,
        ge=1,
        description=(
            "Transactions at once in one worker. A second makes a lone worker faster by a fifth and"
            " its results slower: better run one worker for each core."
        ),
    )
    alone_after: int = Field(
        default=3,
        ge=1,
        description="A message delivered this often before runs alone: it may kill the worker.",
    )
    retry_delays: tuple[Seconds, ...] = Field(
        default=(1.0, 5.0, 30.0, 120.0, 600.0),
        min_length=1,
        description="Waits in the broker before each new try of a deferred message; afterwards "
        "it is parked. Long enough in all (12 minutes) to outlast a failover.",
    )
    newer_version_delay: Seconds = Field(
        default=600.0,
        description="How long a batch of a newer major version waits in the broker before each "
        "new look: a newer worker takes it, an older one lets it wait again.",
    )
    delivery_limit: int = Field(
        default=20, ge=5, description="Returns after which the broker parks a message itself."
    )
    max_queue_bytes: int = Field(
        default=4 * 1024**3,
        gt=0,
        description="The queue refuses publishes beyond this many bytes; viewers then keep them.",
    )

    drain_timeout: Seconds = Field(
        default=20.0,
        description="After SIGTERM, time to commit and ack what is in hand; below the usual "
        "grace period of 30.",
    )
    statement_timeout: Seconds = Field(
        default=15.0, description="One statement; a group of the largest batches takes under 5."
    )
    lock_timeout: Seconds = Field(
        default=5.0, description="Waiting for one lock; a principal is held for one transaction."
    )
    idle_in_transaction_timeout: Seconds = Field(
        default=30.0, description="The database ends a transaction whose worker hangs."
    )
    connect_timeout: Seconds = Field(
        default=5.0, description="Opening a connection to the database or the broker."
    )
    transaction_timeout: Seconds = Field(
        default=60.0,
        description="A whole ingest transaction, seen from the worker; beyond it the connection "
        "is taken for dead.",
    )
    publish_timeout: Seconds = Field(
        default=10.0, description="One publisher confirm; then the outcome counts as unknown."
    )
    heartbeat: int = Field(
        default=10,
        ge=1,
        description="AMQP heartbeat: a dead peer is noticed within three of them.",
    )
    pause_delay_min: Seconds = Field(
        default=0.2, description="First wait for a database that is away; doubles with jitter."
    )
    pause_delay_max: Seconds = Field(
        default=10.0, description="Longest wait between looks at a database that is away."
    )
    hold_timeout: Seconds = Field(
        default=300.0,
        description="While paused, messages in hand are given back after this long: well under "
        "the broker's 30 minutes for an ack.",
    )
    consumer_check_interval: Seconds = Field(
        default=5.0, description="How often the broker is asked whether it lists our consumer."
    )

    stuck_timeout: Seconds = Field(
        default=120.0,
        description="A worker that consumes and has deliveries in hand, but settled none for this "
        "long, exits 7 for its supervisor; well above every other timeout.",
    )
    http_port: int | None = Field(
        default=None,
        ge=0,
        le=65_535,
        description="Where /live, /ready and /metrics are served; none: nowhere, so that several "
        "workers can share a machine.",
    )
    http_host: str = Field(
        default="127.0.0.1",
        description="The address of that port; 0.0.0.0 in a container that others probe.",
    )

    relay_in_worker: bool = Field(default=True, description="Whether `worker` relays as well.")
    relay_batch: int = Field(
        default=500,
        ge=1,
        description="Results, and as many follow-up jobs, in one transaction.",
    )
    relay_poll_interval: Seconds = Field(
        default=0.5, description="Longest wait of a relay that was not told of new rows."
    )

    mastered_stability_days: float = Field(
        default=21.0, gt=0, description="Stability from which a question can count as mastered."
    )
    leech_lapses: int = Field(default=4, ge=1, description="Lapses that make a leech.")
    stuck_attempts: int = Field(
        default=10, ge=3, description="Attempts without three correct in a row: stuck."
    )
    stuck_attempts_never_correct: int = Field(
        default=5, ge=1, description="Attempts without one correct: stuck."
    )

    log_format: str = Field(
        default="auto", pattern="^(auto|json|console)$", description="auto: json when piped."
    )
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")

    def unprotected(self) -> list[str]:
        """The variables whose URL leads over a network without TLS."""
        urls = {
            "INGEST_DATABASE_URL": self.database_url,
            "INGEST_AMQP_URL": self.amqp_url,
            "INGEST_MANAGEMENT_URL": self.management_url,
        }
        found = []
        for name, secret in urls.items():
            if secret is not None:
                url = urlsplit(secret.get_secret_value())
                tls = url.scheme in ("amqps", "https") or (
                    parse_qs(url.query).get("sslmode") == [_VERIFIED]
                )
                if not tls and url.hostname not in _LOOPBACK:
                    found.append(name)
        return found


def load_settings() -> Settings:
    """Reads the environment.

    Raises `SettingsError`, naming the variable and the mend, when one is missing or unreadable.
    """
    try:
        return Settings()  # type: ignore[call-arg]  # pydantic-settings fills the fields
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        name = f"INGEST_{str(problem['loc'][0]).upper()}" if problem["loc"] else "INGEST_*"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            raise SettingsError(f"{name} is not set: set it in the environment.") from None
        raise SettingsError(f"{name} can't be used: {message}.") from None
