"""Every setting of the worker, with its default and the reason for that default.

Each field is read from the environment variable `INGEST_<FIELD>`. Times are in seconds unless the
name says otherwise. `docs/settings.md` is generated from this file.
"""

import os
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from schemas import followups as jobs
from schemas.attempt_batch import MAX_ATTEMPTS, MAX_BODY_BYTES
from schemas.brokers import brokers
from worker.domain.policy import MIB, Policy
from worker.errors import SettingsError
from worker.settings import amqp_url, libpq

Seconds = Annotated[float, Field(gt=0)]


def _parsed(url: SecretStr) -> SplitResult:
    """Splits the URL of the first server that it names, and reads those of the others.

    The parser's own error would show half of a password.
    """
    servers = brokers(url.get_secret_value())
    try:
        parts = [urlsplit(server) for server in servers]
        _ = [each.port for each in parts]
    except ValueError:
        raise ValueError(
            "the URL is not valid: write special characters in its login as %XX"
        ) from None
    return parts[0]


def _postgresql(url: SecretStr) -> SecretStr:
    libpq.parse(url.get_secret_value())
    return url


def _amqp(url: SecretStr) -> SecretStr:
    parts = _parsed(url)
    if parts.scheme not in ("amqp", "amqps"):
        raise ValueError("the URL must begin with amqp:// or amqps://")
    amqp_url.words(brokers(url.get_secret_value())[0])
    return url


def _http(url: SecretStr | None) -> SecretStr | None:
    if url is not None and _parsed(url).scheme not in ("http", "https"):
        raise ValueError("the URL must begin with http:// or https://")
    return url


def _kinds(value: object) -> object:
    """Reads names that are separated by commas. Raises ValueError for an unknown one."""
    if not isinstance(value, str):
        return value
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    known = [kind.routing_key for kind in jobs.KINDS]
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is no kind of follow-up job: use {', '.join(known)}")
    return tuple(dict.fromkeys(names))


class _Servers(BaseModel):
    """Servers"""

    database_url: Annotated[SecretStr, AfterValidator(_postgresql)] = Field(
        description="The PostgreSQL database, as postgresql://user:password@host:port/database. "
        "Add ?sslmode=verify-full for a database on another machine. Several hosts can be given, "
        "as in libpq (host1:port1,host2:port2), and each is tried for INGEST_CONNECT_TIMEOUT. Add "
        "?target_session_attrs=read-write to leave out those that only read. Every other word of "
        "libpq's URLs is followed or refused."
    )
    database_schema: str = Field(
        default="public",
        pattern=r"^[a-z_][a-z0-9_]{0,62}$",
        description="The schema of that database which has the tables, and the application's "
        "content or views of it. `migrate` creates the schema if it is missing. Set it if your "
        "application has tables with the same names, or for a second installation in one database. "
        "All workers and commands of one installation need the same.",
    )
    amqp_url: Annotated[SecretStr, AfterValidator(_amqp)] = Field(
        description="The RabbitMQ vhost, as amqp://user:password@host:port/vhost. "
        "Use amqps:// for a broker on another machine, with ?cafile=... if the system does not "
        "trust its authority. The nodes of a cluster can be given as host1:port1,host2:port2. They "
        "are tried in random order, each for INGEST_CONNECT_TIMEOUT."
    )
    management_url: Annotated[SecretStr | None, AfterValidator(_http)] = Field(
        default=None,
        description="RabbitMQ's management API, as http://user:password@host:port. If it is not "
        "set, the hosts and the login of INGEST_AMQP_URL are used with port 15672, or 15671 for "
        "amqps. Several hosts can be given here as well.",
    )
    connect_timeout: Seconds = Field(
        default=5.0,
        description="The longest time for opening a connection to the database or the broker.",
    )
    heartbeat: int = Field(
        default=10,
        ge=1,
        description="The interval of AMQP heartbeats. A connection whose other side is gone is "
        "closed after at most three intervals. Shorter intervals close healthy connections on a "
        "slow network.",
    )


class _Identity(BaseModel):
    """Who may write"""

    require_user_id: bool = Field(
        default=True,
        description="Whether to reject batches whose sender the broker has not verified (through "
        "the AMQP property user_id), and batches from viewers without a grant. Set it to false "
        "only on your own machine: anybody who can publish can then change anybody's history.",
    )
    mqtt_exchange: str | None = Field(
        default=None,
        description="The exchange that the broker's MQTT plugin publishes to, usually amq.topic. "
        "Set it if viewers connect from a browser; their MQTT topic, which the broker checks, then "
        "identifies them instead of user_id. If it is not set, workers accept nothing from MQTT.",
    )


class _Times(BaseModel):
    """Times"""

    earliest_answer: date = Field(
        default=date(2015, 1, 1),
        description="The first day (in UTC) on which an answer can have been given. A device that "
        "sends an earlier time has a wrong clock or another calendar, and the time is replaced. "
        "Set it to the day of your first viewer, if that is later. Run `study-ingest rebuild` "
        "after you change it.",
    )


class _Erasure(BaseModel):
    """Erasure"""

    erase_memory: float = Field(
        default=90.0,
        ge=0,
        description="For how many days after `erase` an answer whose time can't be true is taken "
        "for one that was given before. Answers with a credible time are judged by that time for "
        "ever. Set it to the longest time that a phone may be offline.",
    )


class _Keeping(BaseModel):
    """Keeping

    Workers prune once a day what is older, and `study-ingest prune` at once:
    [operators.md](operators.md#years-of-data).
    """

    keep_results: float | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="For how many days the result of a batch is kept, to be sent again if the "
        "batch comes again. After that such a duplicate is still recognised, and its viewer is "
        "told that the result is pruned. If it is not set, results are kept for ever. Set it when "
        "no worker of version 0.1.0 runs any more.",
    )
    keep_audit: float | None = Field(
        default=None,
        ge=30,
        le=36_500,
        description="For how many days the audit is kept. Records of erasures stay for ever, "
        "because whoever restores a backup needs it. If it is not set, everything stays for ever.",
    )


class _Limits(BaseModel):
    """Limits of a batch and of the queue"""

    max_body_bytes: int = Field(
        default=MAX_BODY_BYTES,
        gt=0,
        description="The largest body of a batch. A larger one is rejected before it is parsed.",
    )
    max_attempts: int = Field(
        default=MAX_ATTEMPTS,
        gt=0,
        description="The most attempts in a batch. A batch with more is rejected.",
    )
    max_queue_bytes: int = Field(
        default=4 * 1024**3,
        gt=0,
        description="The size at which the queue refuses new batches. Viewers then keep them and "
        "try again. Set it below the free disk space of the broker. `topology` applies it.",
    )
    dead_body_bytes: int = Field(
        default=4 * MIB,
        ge=4_096,
        description="The largest body that a dead letter keeps whole. Of a larger body it keeps "
        "the beginning, the length and the SHA-256.",
    )
    dead_letters_per_viewer: int = Field(
        default=10_000,
        ge=1,
        description="The number of dead letters of one viewer from which letters that can never be "
        "ingested (`malformed`, `too_large`, `unidentified_publisher`) keep only their first 4 KiB "
        "and their SHA-256. All others are always kept whole. An alert names the viewer.",
    )


class _Consuming(BaseModel):
    """Consuming"""

    enabled: bool = Field(
        default=True,
        description="Whether workers take messages from the queue. If it is false, a worker starts "
        "and waits, and every message stays in the queue.",
    )
    prefetch: int = Field(
        default=200,
        ge=1,
        le=65_535,
        description="The most deliveries that one worker holds without having acknowledged them. "
        "The default is four groups: one in the transaction, one waiting, and two whose "
        "acknowledgement waits for an earlier one. A higher value uses more memory and is no "
        "faster. With partitions it is divided among the queues of a worker, each of which gets at "
        "least two groups. The bodies in hand never take more than 64 MiB together.",
    )
    group_max: int = Field(
        default=50,
        ge=1,
        description="The most batches in one transaction. A larger group is hardly faster and "
        "holds its locks longer.",
    )
    lanes: int = Field(
        default=1,
        ge=1,
        description="The number of transactions that one worker runs at the same time. A second "
        "lane makes a single worker about a fifth faster and its results slower. It is better to "
        "run one worker for each core.",
    )
    transactions_at_once: int = Field(
        default=0,
        ge=0,
        description="The most groups that all workers together ingest at the same time. Further "
        "groups wait in the database, so that more workers than the machine can serve do not slow "
        "each other down. 0 means twice the number of cores that this worker sees, and at least 4. "
        "Set it if the database has more cores than the workers' machines. Workers with different "
        "values can run beside each other.",
    )
    partitions: int = Field(
        default=1,
        ge=1,
        le=256,
        description="The number of partitions of the queue. With more than 1, all batches of a "
        "viewer go through the same partition, and one worker at a time consumes it, so that a "
        "viewer's backlog does not make several workers wait for each other. Set it to a few times "
        "the number of workers. `topology` applies it, and workers see the change by themselves. "
        "[operators.md](operators.md#partitions) says what else it changes.",
    )
    alone_after: int = Field(
        default=3,
        ge=1,
        description="The number of returns after which a message is processed alone, because it "
        "may be the one that crashes workers. It must be lower than INGEST_DELIVERY_LIMIT.",
    )
    consumer_check_interval: Seconds = Field(
        default=5.0,
        description="How often a worker asks the broker whether it still lists the worker's "
        "consumer. A worker that is not listed subscribes again.",
    )
    drain_timeout: Seconds = Field(
        default=20.0,
        description="The time that a worker has after SIGTERM to commit and acknowledge the "
        "batches that it holds. Keep it below the grace period of your supervisor, which is "
        "usually 30 seconds.",
    )
    stuck_timeout: Seconds = Field(
        default=120.0,
        description="A worker that holds deliveries and settles none of them for this long exits "
        "with code 7, so that its supervisor restarts it. Keep it well above all other timeouts.",
    )


class _Retries(BaseModel):
    """Retries and pauses"""

    retry_delays: tuple[Seconds, ...] = Field(
        default=(1.0, 5.0, 30.0, 120.0, 600.0),
        min_length=1,
        description="The delays before each retry of a message that failed. After the last retry "
        "the message becomes a dead letter. The delays add up to more than 12 minutes, which is "
        "longer than a failover of the database usually takes.",
    )
    newer_version_delay: Seconds = Field(
        default=600.0,
        description="How long a batch of a newer major version waits in the broker before a "
        "worker looks at it again. A newer worker ingests it, an older one postpones it again.",
    )
    delivery_limit: int = Field(
        default=20,
        ge=5,
        description="The number of returns after which the broker itself moves a message to the "
        "dead letters. `topology` applies it.",
    )
    pause_delay_min: Seconds = Field(
        default=0.2,
        description="The first delay before a worker tries a server again that is unreachable. "
        "Each further delay is about twice as long, with jitter.",
    )
    pause_delay_max: Seconds = Field(
        default=4.0,
        description="The longest delay before a worker tries an unreachable server again.",
    )
    hold_timeout: Seconds = Field(
        default=300.0,
        description="How long a paused worker keeps the deliveries that it holds before it returns "
        "them to the queue. Keep it well below the broker's consumer timeout of 30 minutes.",
    )


class _Timeouts(BaseModel):
    """Timeouts of one step"""

    statement_timeout: Seconds = Field(
        default=15.0,
        description="The longest time for one SQL statement. A group of the largest batches takes "
        "less than 5 seconds.",
    )
    lock_timeout: Seconds = Field(
        default=5.0,
        description="The longest wait for one lock in the database. A user's history is locked "
        "for one transaction at a time.",
    )
    idle_in_transaction_timeout: Seconds = Field(
        default=30.0,
        description="The time after which the database ends a transaction whose worker sends no "
        "statement, so that a worker that hangs releases its locks.",
    )
    transaction_timeout: Seconds = Field(
        default=60.0,
        description="The longest time for a whole ingest transaction, measured by the worker. "
        "After it the worker treats the connection as dead.",
    )
    publish_timeout: Seconds = Field(
        default=10.0,
        description="The longest wait for a publisher confirm. After it the worker assumes "
        "nothing about the message and publishes it again.",
    )


class _Relaying(BaseModel):
    """Relaying results"""

    relay_in_worker: bool = Field(
        default=True,
        description="Whether a worker also relays results and follow-up jobs. Set it to false if "
        "you run `study-ingest relay` as separate processes.",
    )
    relay_batch: int = Field(
        default=500,
        ge=1,
        description="The most results that a relay publishes in one transaction, and the most "
        "follow-up jobs.",
    )
    relay_poll_interval: Seconds = Field(
        default=0.5,
        description="How often a relay looks for new rows in the outbox. A relay inside a worker "
        "also looks right after each commit of that worker.",
    )


class _Followups(BaseModel):
    """Follow-up jobs"""

    followups: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_kinds)] = Field(
        default=tuple(kind.routing_key for kind in jobs.KINDS),
        description="The kinds of follow-up jobs that are wanted, separated by commas. Set it to "
        "the empty string if nobody takes any: then none are written. Answers that were given "
        "while a kind is not wanted cause no job of this kind later. "
        "[followups.md](followups.md) says what each kind is for.",
    )
    max_followups: int = Field(
        default=100_000,
        gt=0,
        description="The number of jobs that wait in the broker for each kind, at most. Further "
        "jobs wait in the outbox, and other kinds and results go on. Set it below what the "
        "broker's disk holds (1 KB for each job). `topology` applies it.",
    )


class _Probes(BaseModel):
    """Probes, metrics and logs"""

    http_port: int | None = Field(
        default=None,
        ge=0,
        le=65_535,
        description="The port that serves /live, /ready and /metrics; 0 chooses a free port. If it "
        "is not set, nothing is served, so that several workers can share a machine.",
    )
    http_host: str = Field(
        default="127.0.0.1",
        description="The address that serves this port. In a container that is probed from "
        "outside, use 0.0.0.0, or :: for IPv4 and IPv6.",
    )
    log_format: str = Field(
        default="auto",
        pattern="^(auto|json|console)$",
        description="The format of the log: json writes one JSON object a line, console writes "
        "text for people, and auto chooses console on a terminal and json everywhere else.",
    )
    log_level: str = Field(
        default="info",
        pattern="^(debug|info|warning|error)$",
        description="The lowest level that is logged: debug, info, warning or error. At info there "
        "is one line for each batch.",
    )


class _Console(BaseModel):
    """The web console

    Only `study-ingest console` reads these. [operators.md](operators.md#the-console) explains them.
    """

    console_host: str = Field(
        default="127.0.0.1",
        description="The address that serves the console. With the default only this machine can "
        "reach it. Another address needs tokens or a proxy.",
    )
    console_port: int = Field(
        default=9465,
        ge=0,
        le=65_535,
        description="The port that serves the console; 0 chooses a free port.",
    )
    console_tokens: SecretStr | None = Field(
        default=None,
        description="The people who may sign in, as name:role:token, separated by commas. The role "
        "is watch (everything but people's answers), look (everything) or act (everything, and "
        "operators' acts). A token has 20 characters or more. If neither this nor a proxy is set, "
        "the console makes a token at each start and prints it.",
    )
    console_proxy: str | None = Field(
        default=None,
        description="The addresses or networks of a proxy that signs people in, separated by "
        "commas. The console believes the proxy's header, so nobody else may be able to connect "
        "from there.",
    )
    console_proxy_header: str = Field(
        default="X-Forwarded-User",
        pattern=r"^[A-Za-z0-9-]+$",
        description="The header in which that proxy names the person. The proxy must remove it "
        "from what a browser sends.",
    )
    console_proxy_roles: str = Field(
        default="*:watch",
        description="The roles of people that the proxy names, as name:role, separated by commas. "
        "* stands for every other name; without it, nobody else may enter.",
    )


class _Operators(BaseModel):
    """Operators"""

    actor: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="The person who runs a command, for the audit, such as a name or an address. "
        "The audit adds the user of the operating system in any case.",
    )


class _Patterns(BaseModel):
    """Patterns

    Run `study-ingest rebuild` after you change one of these.
    """

    mastered_stability_days: float = Field(
        default=21.0,
        gt=0,
        description="The stability, in days, from which a question can be mastered.",
    )
    leech_lapses: int = Field(
        default=4, ge=1, description="The number of lapses from which a question is a leech."
    )
    stuck_attempts: int = Field(
        default=10,
        ge=3,
        description="The number of attempts from which a question is stuck if it was never "
        "answered correctly three times in a row.",
    )
    stuck_attempts_never_correct: int = Field(
        default=5,
        ge=1,
        description="The number of attempts from which a question is stuck if it was never "
        "answered correctly.",
    )


class Settings(
    _Servers,
    _Identity,
    _Limits,
    _Times,
    _Erasure,
    _Keeping,
    _Consuming,
    _Retries,
    _Timeouts,
    _Relaying,
    _Followups,
    _Probes,
    _Console,
    _Operators,
    _Patterns,
    BaseSettings,
):
    """Everything that an operator can change without changing code."""

    model_config = SettingsConfigDict(env_prefix="INGEST_", frozen=True, extra="ignore")

    @classmethod
    def groups(cls) -> list[type[BaseModel]]:
        """The settings by concern, in the order in which people read them.

        The first line of a group's docstring is its heading, the rest its explanation.
        """
        return [base for base in cls.__bases__ if base is not BaseSettings]

    def turns(self) -> int:
        """How many transactions may ingest at once, over all workers."""
        return self.transactions_at_once or max(4, 2 * (os.cpu_count() or 1))

    def policy(self) -> Policy:
        """The settings that ingest and the operations obey."""
        return Policy(
            self.mastered_stability_days,
            self.leech_lapses,
            self.stuck_attempts,
            self.stuck_attempts_never_correct,
            default_deny=self.require_user_id,
            erase_memory=timedelta(days=self.erase_memory),
            earliest_answer=datetime.combine(self.earliest_answer, time.min, UTC),
            dead_body_bytes=self.dead_body_bytes,
            dead_letters_per_viewer=self.dead_letters_per_viewer,
            followups=None if len(self.followups) == len(jobs.KINDS) else self.followups,
        )

    def brokers(self) -> tuple[str, ...]:
        """The URL of each broker in `amqp_url`, of which there is at least one."""
        return brokers(self.amqp_url.get_secret_value())

    def unprotected(self) -> list[str]:
        """The variables whose URL goes over a network without TLS."""
        found = []
        database = libpq.parse(self.database_url.get_secret_value())
        # Where the URL names none, the driver takes libpq's variable.
        hosts = database.hosts or os.environ.get("PGHOST", "").split(",")
        if not database.is_verified and not all(map(libpq.is_here, hosts)):
            found.append("INGEST_DATABASE_URL")
        for name, secret in (
            ("INGEST_AMQP_URL", self.amqp_url),
            ("INGEST_MANAGEMENT_URL", self.management_url),
        ):
            urls = [] if secret is None else map(urlsplit, brokers(secret.get_secret_value()))
            if any(
                url.scheme not in ("amqps", "https") and not libpq.is_here(url.hostname or "")
                for url in urls
            ):
                found.append(name)
        return found


def load_settings() -> Settings:
    """Reads the environment.

    Raises `SettingsError` with the name of the variable when one is missing or not valid.
    """
    try:
        return Settings()  # type: ignore[call-arg]  # pydantic-settings fills the fields
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        name = f"INGEST_{str(problem['loc'][0]).upper()}" if problem["loc"] else "INGEST_*"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            raise SettingsError(
                f"{name} is not set",
                "set it in the environment.",
            ) from None
        raise SettingsError(f"{name} is not valid: {message}.") from None
