"""The output of each command with `--json`: one object, whose shape is defined here.

docs/commands.schema.json is the JSON Schema of all of them, which `document` creates. A shape only
ever gets new fields, so that programs that read it continue to work.

A command that fails prints `{"error": Error}` instead, and exits with the error's code. Commands
that stream (`export`, `dead show`, `dead export`, `dead replay --dry-run`) print one object on each
line.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NotRequired

import typer
from typing_extensions import TypedDict

from worker.errors import IngestError


class Error(TypedDict):
    """Why a command failed. `code` is stable. `exit_code` is the exit code of the process."""

    code: str
    found: str
    remedy: str
    exit_code: int


class Failed(TypedDict):
    """The output of any command that fails."""

    error: Error


class Migrated(TypedDict):
    """The versions of the schema before and after. Null means no schema."""

    before: str | None
    after: str | None


class TopologyChange(TypedDict):
    verb: str
    what: str
    detail: str


class TopologyApplied(TypedDict):
    changes: list[TopologyChange]


class RoleMade(TypedDict):
    """The password is shown only once."""

    role: str
    password: str


class Pause(TypedDict):
    since: str
    actor: str
    reason: str


class Paused(TypedDict):
    """The pause that is in force. `changed` is false if it was already in force before."""

    paused: bool
    changed: bool
    since: str
    actor: str
    reason: str


class Resumed(TypedDict):
    paused: bool
    changed: bool
    ended: NotRequired[Pause]


class Verified(TypedDict):
    users: int
    differences: list[str]


class Rebuilt(TypedDict):
    """The numbers of checked users, and of corrected rows of progress and times."""

    users: int
    changed: int
    times: int


class Imported(TypedDict):
    """`known` batches were already there."""

    batches: int
    known: int
    attempts: int
    users: int


class Finding(TypedDict):
    check: str
    severity: str
    found: str
    remedy: str


class Examined(TypedDict):
    """`healthy` is false if there is a warning or a danger. The command then exits with 1."""

    healthy: bool
    findings: list[Finding]


class AuditEntry(TypedDict):
    happened_at: str
    actor: str
    operation: str
    subject: str
    reason: str
    effect: dict[str, Any]


class Audit(TypedDict):
    """The newest entry first."""

    entries: list[AuditEntry]


class ViewerMade(TypedDict):
    """The password is shown only once.

    With AMQP there are the exchange, the routing key and the queue. With MQTT there are the client
    id and the two topics.
    """

    viewer: str
    password: str
    users: list[int]
    exchange: NotRequired[str]
    routing_key: NotRequired[str]
    results_queue: NotRequired[str]
    client_id: NotRequired[str]
    topic: NotRequired[str]
    subscription: NotRequired[str]


class ViewerGranted(TypedDict):
    viewer: str
    granted: list[int]


class ViewerRevoked(TypedDict):
    """The users whose grants are gone, or `all` for the whole viewer."""

    viewer: str
    revoked: list[int] | str


class ViewerRotated(TypedDict):
    viewer: str
    password: str


class Viewer(TypedDict):
    name: str
    has_login: bool
    users: list[int]
    mqtt: bool
    http: bool


class Viewers(TypedDict):
    viewers: list[Viewer]


ANSWERS: Final[Mapping[str, Any]] = {
    "migrate": Migrated,
    "topology": TopologyApplied,
    "database-role": RoleMade,
    "settings": dict[str, str],
    "doctor": Examined,
    "pause": Paused,
    "resume": Resumed,
    "verify": Verified,
    "rebuild": Rebuilt,
    "import": Imported,
    "audit": Audit,
    "viewer add": ViewerMade,
    "viewer grant": ViewerGranted,
    "viewer revoke": ViewerRevoked,
    "viewer rotate": ViewerRotated,
    "viewer list": Viewers,
    "error": Failed,
}


def answer(facts: Mapping[str, Any]) -> None:
    """Prints the object of a command."""
    typer.echo(json.dumps(facts))


def failed(error: IngestError) -> Failed:
    """The object of a command that failed."""
    code = re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
    return {
        "error": {
            "code": code,
            "found": error.found,
            "remedy": error.remedy,
            "exit_code": error.exit_code,
        }
    }


def document() -> str:
    """The JSON Schema of every answer, by command."""
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

    found, shared = TypeAdapter.json_schemas(
        [(name, "serialization", TypeAdapter(shape)) for name, shape in ANSWERS.items()],
        title="What the commands of study-ingest print with --json",
    )
    commands = {name: schema for (name, _), schema in found.items()}
    whole = {"$schema": GenerateJsonSchema.schema_dialect, **shared, "commands": commands}
    return json.dumps(whole, indent=2, sort_keys=True) + "\n"
