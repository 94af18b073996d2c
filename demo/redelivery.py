"""`python3 -m demo.redelivery`: runs the walk-through in docs/redelivery.md, and checks it.

The document is the script. For each numbered heading, this runs the first `sh` block as it is
written, waits for its effect, and runs the blocks that show it. It needs Docker with Compose, and
Python with its standard library. It exits with 0 only if everything was as expected, and removes
everything again.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

T = TypeVar("T")

_ROOT: Final = Path(__file__).resolve().parent.parent
_DOCUMENT: Final = _ROOT / "docs" / "redelivery.md"
_PATIENCE: Final = 180.0
_WORKERS: Final = 2

_STEP = re.compile(r"^## \d+\. (.+)$")
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COLORS = re.compile(r"\x1b\[\d*[A-Za-z]")
_COMPOSE_1 = (
    'docker() { if [ "$1" = compose ]; then shift; command docker-compose "$@";'
    ' else command docker "$@"; fi; }\n'
)
"""Provides the command that the document uses on a machine with Compose 1 only."""


class Failed(Exception):
    """What was not as expected, in one sentence."""


class Event(NamedTuple):
    """One line of a worker's log."""

    worker: str
    name: str
    disposition: str
    session: str


class Walk:
    """The walk-through, and what is known so far. The name of each check is its heading."""

    def __init__(self) -> None:
        self._environment = os.environ | {
            "COMPOSE_PROJECT_NAME": f"redelivery{os.getpid()}",
            "COMPOSE_PROFILES": "viewers",
            "POSTGRES_PASSWORD": secrets.token_hex(16),
            "RABBITMQ_PASSWORD": secrets.token_hex(16),
            "SESSIONS_PER_SECOND": "10",
            "INGEST_HEARTBEAT": "3",
        }
        self._environment |= _free_ports("POSTGRES_PORT", "AMQP_PORT", "MANAGEMENT_PORT")
        self._before: Counter[str] = Counter()
        self._sessions_before = 0
        self.checks: dict[str, Callable[[], str]] = {
            "Start": self.started,
            "Kill a worker between commit and ack": self.duplicates_acked,
            "Freeze a worker": self.restored,
            "Cut a worker off the network": self.restored,
            "Restart the broker": self.restored,
            "Restart PostgreSQL": self.goes_on,
            "Compare the numbers": self.nothing_doubled,
        }

    def run(self, commands: str, *, quiet: bool = False) -> str:
        """Runs shell commands as they are in the document. Shows and returns their output."""
        shim = "" if _has_compose_2() else _COMPOSE_1
        done = subprocess.run(  # noqa: S603  # the document's words
            ["bash", "-euo", "pipefail", "-c", shim + commands],  # noqa: S607
            cwd=_ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if quiet else subprocess.STDOUT,
            text=True,
            check=False,
        )
        output = _COLORS.sub("", done.stdout)
        if not quiet:
            print(output, end="", flush=True)
        if done.returncode:
            raise Failed(f"Exit code {done.returncode} of: {commands.strip()}\n{done.stderr or ''}")
        return output

    def note(self) -> None:
        """Remembers the state before a step."""
        self._sessions_before = self.ingested()
        self._before = Counter(event.name for event in self.events())

    # What must come of each step.

    def started(self) -> str:
        """Workers ingest what viewers record."""
        found = _until(lambda: (count := self.ingested()) >= 50 and count, "Nothing is ingested")
        _until(lambda: self.consumers() == _WORKERS, "Not every worker consumes")
        return f"{found} sessions are ingested by {_WORKERS} workers"

    def duplicates_acked(self) -> str:
        """Another worker found that what the first one committed and could not ack is a
        duplicate.
        """

        def twice() -> set[str]:
            events = self.events()
            first = {event.session for event in events if event.disposition == "ingested"}
            return first & {event.session for event in events if event.disposition == "duplicate"}

        found = _until(twice, "No delivery was found to be a duplicate")
        self.restored()
        return f"{len(found)} sessions came again, were found to be duplicates, and acked"

    def restored(self) -> str:
        """The broker lists all workers as consumers again, and sessions are ingested."""
        lost = _until(
            lambda: self._more("consumer.lost") or self._more("consumer.started"),
            "No worker has noticed anything",
        )
        _until(lambda: self.consumers() == _WORKERS, "Not every worker consumes again")
        return f"consumers lost: {lost}, and all are back; {self.goes_on()}"

    def goes_on(self) -> str:
        """More sessions are ingested than before."""
        enough = self._sessions_before + 50
        found = _until(lambda: (count := self.ingested()) >= enough and count, "Nothing goes on")
        return f"{found - self._sessions_before} more sessions are ingested"

    def nothing_doubled(self) -> str:
        """The numbers of the viewers and of the database are the same."""
        lines = self.run("docker compose logs --no-color viewers", quiet=True).splitlines()
        account = json.loads(lines[-1][lines[-1].index("{") :])
        stored = {
            "recorded": self.ingested(),
            "attempts": int(self.psql("SELECT count(*) FROM study_question_attempts")),
        }
        if account["viewers"] != "done" or account["waiting"] or account["rejected"]:
            raise Failed(f"Not every session has been ingested: {account}")
        for what, count in stored.items():
            if account[what] != count:
                raise Failed(f"The viewers have {account[what]} {what}, the database {count}.")
        for queue in ("study.attempts", "study.attempts.dead"):
            empty = f"{queue} is not empty"
            _until(partial(self.is_empty, queue), empty)
        dispositions = Counter(event.disposition for event in self.events())
        return (
            f"{stored['recorded']} sessions with {stored['attempts']} attempts, each stored once;"
            f" {dispositions['duplicate']} duplicates acked"
        )

    # How it is known.

    def psql(self, query: str) -> str:
        """The single value that a query returns."""
        return self.run(
            f'docker compose exec -T postgres psql -U study -d study -tAc "{query}"', quiet=True
        ).strip()

    def ingested(self) -> int:
        """The number of sessions in the inbox."""
        try:
            return int(self.psql("SELECT count(*) FROM ingest_inbox"))
        except Failed:
            return 0  # the server is being restarted

    def queue(self, name: str) -> dict[str, int]:
        """The queue as the broker sees it."""
        port, password = (
            self._environment[key] for key in ("MANAGEMENT_PORT", "RABBITMQ_PASSWORD")
        )
        login = b64encode(f"study:{password}".encode()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/queues/%2F/{name}",
            headers={"Authorization": f"Basic {login}"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            found: dict[str, int] = json.load(answer)
        return found

    def is_empty(self, name: str) -> bool:
        """Whether nothing is in the queue or held by a worker."""
        return self.queue(name)["messages"] == 0

    def consumers(self) -> int:
        """The number of workers that the broker lists. 0 while it is unreachable."""
        try:
            return self.queue("study.attempts").get("consumers", 0)
        except OSError:
            return 0

    def events(self) -> list[Event]:
        """The lines that the workers have logged."""
        log = self.run("docker compose logs --no-color worker", quiet=True)
        return list(_events(log))

    def _more(self, name: str) -> int:
        return sum(event.name == name for event in self.events()) - self._before[name]


def main() -> int:
    """Returns 0 only if everything was as expected."""
    parser = argparse.ArgumentParser(
        prog="python3 -m demo.redelivery", description="Runs docs/redelivery.md and checks it."
    )
    parser.add_argument("--keep", action="store_true", help="leave everything running")
    arguments = parser.parse_args()
    walk = Walk()
    began = time.monotonic()
    with ExitStack() as ending:
        if not arguments.keep:
            ending.callback(walk.run, "docker compose down -v --timeout 30", quiet=True)
        try:
            for heading, blocks in steps(_DOCUMENT.read_text()):
                print(f"\n== {heading}")
                if heading != "Start":
                    walk.note()
                _show(walk, blocks[0])
                found = walk.checks[heading]()
                for block in blocks[1:]:
                    _show(walk, block)
                print(f"-- {found} (at {time.monotonic() - began:.0f} s)", flush=True)
        except Failed as failed:
            print(f"FAILED: {failed}", file=sys.stderr)
            print(walk.run("docker compose logs --no-color --tail 40", quiet=True), file=sys.stderr)
            return 1
    print("\nAll of it held.")
    return 0


def _show(walk: Walk, block: str) -> None:
    print("\n".join(f"$ {line}" for line in block.splitlines()), flush=True)
    walk.run(block)


def steps(document: str) -> Iterator[tuple[str, list[str]]]:
    """The numbered headings of the document, each with its blocks of commands."""
    for section in re.split(r"^(?=## )", document, flags=re.MULTILINE):
        if match := _STEP.match(section.partition("\n")[0]):
            yield match[1], _BLOCK.findall(section)


def _events(log: str) -> Iterator[Event]:
    for line in log.splitlines():
        worker, _, text = line.partition("|")
        try:
            fields = json.loads(text)
        except ValueError:
            continue  # of compose itself, or the last words of one that was killed
        if isinstance(fields, dict):
            yield Event(
                worker.strip(),
                str(fields.get("event")),
                str(fields.get("disposition")),
                str(fields.get("client_session_uuid")),
            )


def _until(condition: Callable[[], T], otherwise: str) -> T:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(1)  # neither Docker nor the servers tell of it
    raise Failed(f"{otherwise} after {_PATIENCE:.0f} seconds.")


def _has_compose_2() -> bool:
    words = ["docker", "compose", "version"]
    if shutil.which("docker") is None:
        return False
    return subprocess.run(words, capture_output=True, check=False).returncode == 0  # noqa: S603


def _free_ports(*names: str) -> dict[str, str]:
    found = {}
    with ExitStack() as held:
        for name in names:
            held.enter_context(taken := socket.socket())
            taken.bind(("127.0.0.1", 0))
            found[name] = str(taken.getsockname()[1])
    return found


if __name__ == "__main__":
    sys.exit(main())
