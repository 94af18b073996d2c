"""Which PostgreSQL and RabbitMQ to use and why, and who still uses those that ./dev started.

A server that nobody asked to keep stops with its last user. A user that was killed does not count.
"""

import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from devtools import compose, debian, environment, instances
from devtools.compose import ComposePostgres, ComposeRabbitMQ
from devtools.erlang import default_suite, installed
from devtools.errors import DevError
from devtools.places import candidates, home, in_home, remove, size
from devtools.postgres import Postgres
from devtools.postgres import default_suite as postgres_suite
from devtools.probe import broker_trouble, database_trouble
from devtools.processes import at_once
from devtools.progress import say
from devtools.rabbitmq import RabbitMQ
from devtools.state import locked, read_json, write_json

WAITING = "another ./dev is starting or stopping the servers: waiting for it"
PATIENCE = 3.0  # s; RabbitMQ 3.10 idles for 5 s at its end, when its queues are closed already


class Service(NamedTuple):
    """One of the two services, with its name for people."""

    title: str
    variable: str
    trouble: Callable[[str], str | None]
    embedded_obstacle: Callable[[], str | None]


class Choice(NamedTuple):
    """Where a service comes from: "given", "embedded" or "docker"; and the reason, for people."""

    source: str
    why: str


def _no_linux() -> str | None:
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in ("x86_64", "aarch64"):
        return f"./dev can't run servers of its own on {system} {machine}"
    return None


def _no_postgres() -> str | None:
    glibc = platform.libc_ver()[0] == "glibc"
    return _no_linux() or (None if glibc else "PostgreSQL's wheel needs glibc")


def _no_rabbitmq() -> str | None:
    suite = default_suite()
    if _no_linux() or installed(suite) or debian.own_suite():
        return _no_linux()
    return "RabbitMQ isn't installed, and this is no Debian to unpack it from"


SERVICES = {
    "postgres": Service("PostgreSQL", "INGEST_DATABASE_URL", database_trouble, _no_postgres),
    "rabbitmq": Service("RabbitMQ", "INGEST_AMQP_URL", broker_trouble, _no_rabbitmq),
}


def choose(
    service: Service, environ: Mapping[str, str], no_docker: Callable[[], str | None]
) -> Choice:
    """Where this service comes from: a URL that is set, or else our own server, or else Docker.

    Raises DevError if none of them is available, or if DEV_BACKEND asks for one that isn't.
    """
    if environ.get(service.variable):
        return Choice("given", f"{service.variable} is set")
    backend = environ.get("DEV_BACKEND") or "auto"
    if backend not in ("auto", "embedded", "docker"):
        raise DevError(f"DEV_BACKEND is {backend!r}: give auto, embedded or docker.")
    reasons = [f"{service.variable} is not set"]
    if backend == "docker":
        reasons = ["DEV_BACKEND is docker"]
    else:
        if (obstacle := service.embedded_obstacle()) is None:
            return Choice("embedded", reasons[0])
        reasons.append(obstacle)
    if backend != "embedded":
        if (obstacle := no_docker()) is None:
            return Choice("docker", " and ".join(reasons))
        reasons.append(obstacle)
    raise DevError(
        f"no {service.title}: {', '.join(reasons)}: "
        f"set {service.variable} to one of yours, or start Docker."
    )


def choices(names: Collection[str] = tuple(SERVICES)) -> dict[str, Choice]:
    """The choice for each of these services.

    Raises DevError if one isn't available, or doesn't answer at the URL that is set.
    """
    made = {name: choose(SERVICES[name], os.environ, compose.obstacle) for name in names}
    for name, choice in made.items():
        service = SERVICES[name]
        if choice.source == "given":
            url = os.environ[service.variable]
            if trouble := service.trouble(url):
                raise DevError(
                    f"no {service.title} answers at {service.variable} ({trouble}): "
                    "start it, correct the URL, or unset the variable."
                )
    return made


def _told(made: Mapping[str, Choice]) -> str:
    """The choices in one line, with the reasons."""
    said: dict[str, list[str]] = {}
    for name, choice in made.items():
        said.setdefault(choice.why, []).append(f"{SERVICES[name].title}: {choice.source}")
    return "; ".join(f"{', '.join(what)} (because {why})" for why, what in said.items())


def _key(name: str, choice: Choice) -> str:
    """The name of a private server in the ledger and of its folder. It contains the suite, if the
    server comes from one.
    """
    if choice.source == "docker":
        return f"docker-{name}"
    suite = postgres_suite() if name == "postgres" else default_suite()
    return f"{name}-{suite}" if suite or name == "rabbitmq" else name


def _server(key: str) -> Postgres | RabbitMQ | ComposePostgres | ComposeRabbitMQ:
    folder = in_home("pair") / key
    if key == "postgres" or key.startswith("postgres-"):
        return Postgres(folder, suite=key.partition("-")[2] or None)
    if key == "docker-postgres":
        return ComposePostgres(folder)
    if key == "docker-rabbitmq":
        return ComposeRabbitMQ(folder)
    return RabbitMQ(folder, suite=key.removeprefix("rabbitmq-"))


class Ledger:
    """Which private servers are kept or in use, on disk. Only change it under `lock`."""

    def __init__(self) -> None:
        self.path = home() / "state.json"

    def lock(self) -> Any:
        """Hold this while the ledger is changed, and while servers start and stop."""
        return locked(home() / "lock", WAITING)

    def read(self) -> dict[str, dict[str, Any]]:
        """By key: whether it is `kept`, and the living `users`."""
        known = {path.name: {} for path in in_home("pair").iterdir()} | read_json(self.path)
        return {
            key: {
                "kept": bool(entry.get("kept")),
                "users": [user for user in entry.get("users", []) if instances.lives(user)],
            }
            for key, entry in known.items()
        }

    def write(self, entries: dict[str, dict[str, Any]]) -> None:
        write_json(self.path, entries)

    def enter(self, keys: list[str], *, keep: bool) -> None:
        """Note that this process uses these servers, or that they should be kept without it."""
        entries = self.read()
        for key in keys:
            entry = entries.setdefault(key, {"kept": False, "users": []})
            entry["kept"] = entry["kept"] or keep
            if not keep:
                entry["users"].append(instances.me())
        self.write(entries)

    def leave(self) -> None:
        """Note that this process uses nothing any more."""
        entries = self.read()
        for entry in entries.values():
            entry["users"] = [user for user in entry["users"] if user != instances.me()]
        self.write(entries)

    def settle(self) -> None:
        """Stop the servers that nobody uses or keeps, and remove private servers left behind."""
        idle = [
            key for key, entry in self.read().items() if not entry["kept"] | bool(entry["users"])
        ]
        at_once([partial(_server(key).stop, PATIENCE) for key in idle])
        instances.sweep()


@contextmanager
def servers(
    *, keep: bool = False, names: Collection[str] = tuple(SERVICES)
) -> Iterator[dict[str, str]]:
    """The INGEST_* variables of these servers, which answer, while the block runs.

    Servers that already run are used. Others are started, side by side with the installation of the
    dependencies, and stopped at the end unless `keep` is set or somebody else uses them. Raises
    DevError.
    """
    made = choices(names)
    keys = {name: _key(name, each) for name, each in made.items() if each.source != "given"}
    ours = {name: _server(key) for name, key in keys.items()}
    ledger = Ledger()
    try:
        with ledger.lock():
            ledger.enter(list(keys.values()), keep=False)
            ledger.settle()
            waiting = {name: server for name, server in ours.items() if not server.ready()}
            if waiting or len(ours) < len(made):
                say(_told(made))
            if waiting:
                say(f"starting {' and '.join(SERVICES[name].title for name in waiting)}")
            began = time.monotonic()
            at_once([environment.ensure, *(server.start for server in waiting.values())])
            if waiting:
                say(f"ready after {time.monotonic() - began:.0f} s")
            if keep:
                ledger.enter(list(keys.values()), keep=True)
        variables = {
            service.variable: ours[name].url if name in ours else os.environ[service.variable]
            for name, service in SERVICES.items()
            if name in made
        }
        broker = ours.get("rabbitmq")
        if isinstance(broker, RabbitMQ | ComposeRabbitMQ):
            variables["INGEST_MANAGEMENT_URL"] = broker.management_url
        elif given := os.environ.get("INGEST_MANAGEMENT_URL"):
            variables["INGEST_MANAGEMENT_URL"] = given
        if "rabbitmq" in ours:
            # Our broker knows one login, and listens on the loopback alone: workers take whatever
            # is published there, and warn of it. Told otherwise, they do otherwise.
            variables["INGEST_REQUIRE_USER_ID"] = os.environ.get("INGEST_REQUIRE_USER_ID", "false")
        yield variables
    finally:
        with _undisturbed(), ledger.lock():
            ledger.leave()
            ledger.settle()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no signal interrupt the clean-up, because a second Ctrl-C would leave servers behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(*, now: bool) -> list[str]:
    """Stop the servers that `up` left running. Those in use stop with their last user, unless `now`
    is set.

    Returns a line for each server, for people.
    """
    ledger = Ledger()
    with ledger.lock():
        before = ledger.read()
        running = {key for key in before if _server(key).alive()}
        after = {
            key: {"kept": False, "users": [] if now else entry["users"]}
            for key, entry in before.items()
        }
        ledger.write(after)
        ledger.settle()
    lines = []
    for key in sorted(running):
        users = ", ".join(str(user["pid"]) for user in after[key]["users"])
        lines.append(
            f"{key}: in use by process {users}: it ends with that" if users else f"{key}: stopped"
        )
    return lines


def reset(others: Collection[Path]) -> int:
    """Stop the servers, and remove all state and the `others`. Returns the number of bytes that
    this freed.

    Raises DevError if somebody uses them, or if something can't be removed.
    """
    ledger = Ledger()
    with ledger.lock():
        entries = ledger.read()
        users = {user["pid"] for entry in entries.values() for user in entry["users"]}
        if users := users | instances.owners():
            raise DevError(
                f"in use by process {', '.join(map(str, sorted(users)))}: end that, "
                "and run ./dev reset again."
            )
        ledger.write({key: {"kept": False, "users": []} for key in entries})
        ledger.settle()
        doomed = [*others, *candidates()]
        freed = size(*doomed)
        for path in doomed:
            remove(path)
    return freed


def report() -> list[str]:
    """A line for each server of ours, for people."""
    lines = []
    for key, entry in sorted(Ledger().read().items()):
        server = _server(key)
        state = "running" if server.ready() else "starting" if server.alive() else "stopped"
        why = ["left by ./dev up"] if entry["kept"] else []
        why += [f"in use by process {user['pid']}" for user in entry["users"]]
        where = f" {server.url}" if server.alive() else ""
        lines.append(f"{key}: {state}{where}{' (' + ', '.join(why) + ')' if why else ''}")
    return lines
