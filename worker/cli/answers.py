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


class Voided(TypedDict):
    """`progress` counts the questions whose progress changed. All is zero if it was void before."""

    user_id: int
    sessions: int
    attempts: int
    progress: int


class Rescored(TypedDict):
    """What changed, and the number of results that are sent."""

    attempts: int
    sessions: int
    progress: int
    told: int


class Erased(TypedDict):
    """What is deleted. `unattributed_dead_letters` name no known question, and stay."""

    user_id: int
    attempts: int
    sessions: int
    progress: int
    batches: int
    messages: int
    dead_letters: int
    unattributed_dead_letters: int


class Recalled(TypedDict):
    """`viewers` get the message, but for those `without_queue`. Users were `erased` again, except
    those whose erasure was known.
    """

    since: str
    dry_run: bool
    viewers: int
    without_queue: int
    erased: int
    known_erasures: int


class Imported(TypedDict):
    """`known` batches were already there. `erased` of them were erased here, and stay erased."""

    batches: int
    known: int
    erased: int
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


class Queue(TypedDict):
    """Rates are in messages per second. Null means that the broker measures none."""

    name: str
    ready: int
    unacknowledged: int
    consumers: int
    published_per_second: float | None
    acknowledged_per_second: float | None


class Broker(TypedDict):
    """`listening` counts the viewers that have a queue for their results, and `partitions` those of
    the queue that are in use.
    """

    version: str
    queues: list[Queue]
    listening: int
    partitions: int


class PauseInForce(TypedDict):
    paused_at: str
    actor: str
    reason: str


class Backlog(TypedDict):
    """The messages in the outbox, and the age of the oldest and of the oldest result in seconds."""

    messages: int
    oldest_age: float
    oldest_result_age: float


class KindBacklog(TypedDict):
    """The follow-up jobs of one kind that wait in the outbox."""

    kind: str
    jobs: int
    since: str


class KeptSize(TypedDict):
    """A kind of rows with its indexes. `rows` is an estimate, and null before there is one.
    `oldest` is null where there is none, or where nobody knows.
    """

    what: str
    bytes: int
    rows: int | None
    oldest: str | None


class Growth(TypedDict):
    """Batches of up to a week, and what each leaves for good, over all that there are."""

    batches_per_day: float
    bytes_per_batch: float
    bytes_per_day: float


class Pruning(TypedDict):
    """What has been pruned so far. `worker` is the one that does it now. Results from before
    `results_before` are gone, except those whose rows were locked at that moment.
    """

    worker: str | None
    finished_at: str | None
    results_before: str | None
    results: int
    audit: int
    moments: int


class DeadLetters(TypedDict):
    """`leaving` counts the replays that are not published yet."""

    by_reason: dict[str, int]
    oldest: str | None
    leaving: int


class Database(TypedDict):
    """`granted` counts viewers with a grant. Without the right schema, only versions are known.

    `refusal` says why the database takes no writes. It is only tried while nothing is ingested.
    `other_schedules` is the share of progress that another scheduler computed, from 0 to 1.
    """

    schema: str | None
    schema_wanted: str
    pause: PauseInForce | None
    outbox: Backlog | None
    dead: DeadLetters | None
    hanging_commits: int
    granted: int
    refusal: str | None
    other_schedules: float
    jobs: list[KindBacklog]
    sizes: list[KeptSize]
    growth: Growth | None
    pruning: Pruning | None


class AttentionItem(TypedDict):
    """`code` is stable. `severity` is note, warning or danger."""

    code: str
    severity: str
    found: str
    remedy: str


class Partition(TypedDict):
    """A partition of the queue. `workers` names the one that consumes it."""

    name: str
    ready: int
    unacknowledged: int
    consumers: int
    workers: list[str]


class Worker(TypedDict):
    """A worker, as it said itself at `seen_at`. `paused_for` is null while it is not paused."""

    name: str
    host: str
    version: str
    since: str
    seen_at: str
    is_silent: bool
    state: str
    in_hand: int
    paused_for: str | None
    partitions: list[str]


class Status(TypedDict):
    """The worst item first. Null stands for a server that is unreachable.

    `other_workers` counts those of version 0.1.0, which are not among `workers`.
    """

    healthy: bool
    at: str
    broker: Broker | None
    partitions: list[Partition]
    workers: list[Worker]
    other_workers: int
    database: Database | None
    attention: list[AttentionItem]


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


class Pruned(TypedDict):
    """How much has gone or, with --dry-run, would go. Null stands for what is kept for ever."""

    results: int
    audit: int
    moments: int
    results_before: str | None
    audit_before: str | None
    dry_run: bool


class ViewerMade(TypedDict):
    """The password is shown only once.

    With AMQP there are the exchange, the routing keys and the queues. With MQTT there are the
    client id and the topics.
    """

    viewer: str
    password: str
    users: list[int]
    exchange: NotRequired[str]
    routing_key: NotRequired[str]
    results_queue: NotRequired[str]
    progress_routing_key: NotRequired[str]
    progress_queue: NotRequired[str]
    client_id: NotRequired[str]
    topic: NotRequired[str]
    subscription: NotRequired[str]
    progress_topic: NotRequired[str]
    progress_subscription: NotRequired[str]


class ViewerEnsured(TypedDict):
    """A line of `viewer import`. The password is null if the viewer existed. `granted` are the
    users whose grant is new.
    """

    viewer: str
    password: str | None
    granted: list[int]


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


class ViewersUpgraded(TypedDict):
    upgraded: list[str]


class Viewer(TypedDict):
    """`connected_since` is null if it is not connected. `heard_at` is the newest of the times of
    its last batch, of its last question for progress and of its last dead letter.
    """

    name: str
    has_login: bool
    users: list[int]
    mqtt: bool
    http: bool
    connected_since: str | None
    results_waiting: int
    heard_at: str | None
    last_batch_at: str | None
    app: str | None
    asked_at: str | None
    last_rejected_at: str | None
    rejected_lately: int


class Viewers(TypedDict):
    viewers: list[Viewer]


class Letter(TypedDict):
    """A dead letter without its content. If not `whole`, only the beginning of the body is kept."""

    id: int
    died_at: str
    reason: str
    detail: str
    viewer: str | None
    routing_key: str
    client_session_uuid: str | None
    bytes: int
    whole: bool
    replaying: bool


class LetterGroup(TypedDict):
    """Letters of one reason, detail and viewer. `example` is the id of the oldest."""

    reason: str
    detail: str
    viewer: str | None
    letters: int
    first: str
    last: str
    example: int


class LetterList(TypedDict):
    """The number of all letters that fit, and their groups or (with --letters) the letters."""

    count: int
    groups: NotRequired[list[LetterGroup]]
    letters: NotRequired[list[Letter]]


class LetterDifference(TypedDict):
    """A difference from the batch that was ingested under the same uuid, as text."""

    position: int
    field: str
    ingested: str
    in_letter: str


class ShownLetter(Letter):
    """A line of `dead show`. `body_sha256` is null if the body is whole."""

    body_sha256: str | None
    properties: dict[str, Any]
    body: str
    differences: list[LetterDifference] | None


class ExportedLetter(Letter):
    """A line of `dead export`. The properties are also there as an AMQP field table in base64."""

    body_sha256: str | None
    properties: dict[str, Any]
    properties_base64: str
    body_base64: str


class Replayed(TypedDict):
    """The number of letters, and with --wait what became of them."""

    replayed: int
    left_out: int
    outcomes: NotRequired[dict[str, int]]


class SessionWritten(TypedDict):
    quiz_session_id: str
    user_id: int
    topic_id: int
    correct: int
    wrong: int
    unsure: int


class AttemptWritten(TypedDict):
    position: int
    question_id: int
    selected_choice: int | None
    correct_choice: int
    outcome: str
    answered_at: str


class ProgressChange(TypedDict):
    """The columns of a progress row before and after. Null means no row."""

    question_id: int
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class MessageWritten(TypedDict):
    routing_key: str
    type: str
    body: str


class Rehearsed(Letter):
    """A line of `dead replay --dry-run`. `would_be` is ingested, duplicate, rejected or failed."""

    would_be: str
    would_be_because: str | None
    would_say: str | None
    sessions: list[SessionWritten]
    attempts: list[AttemptWritten]
    progress: list[ProgressChange]
    messages: list[MessageWritten]


class Discarded(TypedDict):
    discarded: int


class Topic(TypedDict):
    """`known` questions had a correct last answer. `recall` is the mean predicted for now."""

    topic_id: int
    name: str
    seen: int
    mastered: int
    known: int
    due: int
    overdue: int
    recall: float


class NextReview(TypedDict):
    """A question that is due. `recall` is the predicted recall, from 0 to 1. `overdue_days` counts
    days by the calendar since `due_from`.
    """

    question_id: int
    pub_id: str
    title: str | None
    topic: str
    pattern: str
    recall: float
    due_from: str
    overdue_days: int


class Stubborn(TypedDict):
    """`due_at` is the schedule's. The question is due from `due_from` on."""

    question_id: int
    pub_id: str | None
    title: str | None
    topic: str
    pattern: str
    lapses: int
    attempts: int
    due_at: str
    due_from: str


class DayDue(TypedDict):
    day: str
    due: int


class WeekRecalled(TypedDict):
    monday: str
    reviews: int
    recalled: int
    predicted: float | None


class Report(TypedDict):
    """Days are UTC days, and shares are from 0 to 1.

    The report is about the moment `at`: later answers are left out. It was made at `made_at`.
    `unpublished` of the questions are not published, and therefore never due. `overdue` questions
    were due before today. The days of `forecast` begin with today. `retention` is the share of
    reviews in `weeks` that were recalled, and `predicted` the share that the scheduler expected.
    Both are null without reviews. `next` are due questions, the most forgotten first.
    """

    user_id: int
    at: str
    made_at: str
    questions: int
    unpublished: int
    attempts: int
    known: int
    due: int
    recall: float
    retention: float | None
    predicted: float | None
    topics: list[Topic]
    overdue: int
    forecast: list[DayDue]
    weeks: list[WeekRecalled]
    patterns: dict[str, int]
    next: list[NextReview]
    stubborn: list[Stubborn]


class DueQuestion(TypedDict):
    """`pub_ids` are all ids under which it is published now. `retrievability` is the predicted
    recall, from 0 to 1.
    """

    question_id: int
    topic_id: int
    pub_ids: list[str]
    title: str | None
    due_from: str
    last_answered_at: str
    pattern: str
    retrievability: float


class Due(TypedDict):
    """`count` is the number of all due questions. `due` is limited, the most forgotten first."""

    user_id: int
    at: str
    count: int
    due: list[DueQuestion]


class ContentImported(TypedDict):
    """`dry_run` changed nothing. `withdrawn` counts questions of the file that stay withdrawn."""

    dry_run: bool
    lines: int
    topics: int
    questions: int
    moved: int
    texts: int
    unchanged: int
    withdrawn: int


class RefusedSession(TypedDict):
    """`line` is where the session begins."""

    line: int
    reason: str
    detail: str


class AnswersImported(TypedDict):
    """`left_out` counts answers to questions that are not published, by the reason. `added`,
    `known` and `empty` count sessions: new, imported before, and without any published question.
    """

    dry_run: bool
    answers: int
    users: int
    sessions: int
    left_out: dict[str, int]
    added: int
    known: int
    empty: int
    replaced_times: int
    refused: list[RefusedSession]


class ContentTopic(TypedDict):
    """`user_id` is null for a shared bank."""

    topic_id: int
    user_id: int | None
    name: str
    questions: int
    published: int
    withdrawn: int
    deleted: int


class ContentQuestion(TypedDict):
    """`state` is published, withdrawn, unpublished or deleted."""

    question_id: int
    pub_id: str | None
    user_id: int | None
    topic_id: int
    correct_choice: int
    state: str
    title: str | None


class ContentListed(TypedDict):
    """With `--topic` there are questions, otherwise topics."""

    topics: NotRequired[list[ContentTopic]]
    questions: NotRequired[list[ContentQuestion]]


class ContentChanged(TypedDict):
    """`unchanged` publications were in the wanted state before."""

    changed: int
    unchanged: int


class ContentTouched(TypedDict):
    """`to_rescore` names questions with answers that were scored by another correct choice."""

    moved: int
    users: int
    to_rescore: list[int]


class BatchBrief(TypedDict):
    """A batch, and when it was ingested or rejected. `answers` counts those that were scored.

    `reason` is why it was rejected. Nobody knows the user and the topics of a rejected batch.
    """

    at: str
    client_session_uuid: str | None
    status: str
    viewer: str | None
    user_id: int | None
    topic_ids: list[int]
    answers: int
    skipped: int
    reason: str | None


class BatchList(TypedDict):
    since: str
    batches: list[BatchBrief]


class BatchSession(TypedDict):
    """The part of a batch that belongs to one topic."""

    quiz_session_id: str
    topic_id: int
    correct: int
    wrong: int
    unsure: int
    voided_at: str | None


class BatchAttempt(TypedDict):
    """A scored attempt. `answered_at` is the time with which it counts.

    `time_was` says why that is not the time as sent. `times_corrected` counts earlier scores.
    """

    position: int
    topic_id: int
    question_id: int
    pub_ids: list[str]
    selected_choice: int | None
    correct_choice: int
    outcome: str
    answered_at: str
    answered_at_sent: str | None
    time_was: str | None
    duration_ms: int | None
    times_corrected: int


class BatchSkipped(TypedDict):
    position: int
    question_pub_id: str
    reason: str


class BatchLetter(TypedDict):
    """A dead letter with the uuid of the batch."""

    id: int
    died_at: str
    reason: str
    detail: str
    viewer: str | None


class BatchJob(TypedDict):
    """A follow-up job that the batch has caused and that is not published yet."""

    kind: str
    since: str


class BatchShown(TypedDict):
    """What is stored about a batch. `status` is `rejected` if there are only dead letters.

    `result_waits_since` is null once the viewer's result is published. `published_at` and what
    follows, up to `told_at`, are null where they are not known: they are kept for 30 days. What was
    skipped is not known once the result is pruned.
    """

    client_session_uuid: str
    status: str
    viewer: str | None
    user_id: int | None
    received_at: str | None
    erased_at: str | None
    result_pruned: bool
    result_waits_since: str | None
    published_at: str | None
    published_by: str | None
    worker: str | None
    group_size: int | None
    milliseconds: float | None
    told_at: str | None
    jobs_waiting: list[BatchJob]
    sessions: list[BatchSession]
    attempts: list[BatchAttempt]
    skipped: list[BatchSkipped]
    dead_letters: list[BatchLetter]


ANSWERS: Final[Mapping[str, Any]] = {
    "migrate": Migrated,
    "topology": TopologyApplied,
    "database-role": RoleMade,
    "reader-role": RoleMade,
    "settings": dict[str, str],
    "status": Status,
    "doctor": Examined,
    "pause": Paused,
    "resume": Resumed,
    "verify": Verified,
    "rebuild": Rebuilt,
    "void": Voided,
    "rescore": Rescored,
    "erase": Erased,
    "recall": Recalled,
    "import": Imported,
    "report": Report,
    "due": Due,
    "audit": Audit,
    "prune": Pruned,
    "batch list": BatchList,
    "batch show": BatchShown,
    "dead list": LetterList,
    "dead show": ShownLetter,
    "dead replay": Replayed,
    "dead replay --dry-run": Rehearsed,
    "dead discard": Discarded,
    "dead export": ExportedLetter,
    "viewer add": ViewerMade,
    "viewer import": ViewerEnsured,
    "viewer grant": ViewerGranted,
    "viewer revoke": ViewerRevoked,
    "viewer rotate": ViewerRotated,
    "viewer upgrade": ViewersUpgraded,
    "viewer list": Viewers,
    "content import": ContentImported,
    "content list": ContentListed,
    "content withdraw": ContentChanged,
    "content restore": ContentChanged,
    "content check": Examined,
    "content touched": ContentTouched,
    "answers import": AnswersImported,
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
    return json.dumps(schemas_of(ANSWERS), indent=2, sort_keys=True) + "\n"


def schemas_of(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schemas of these shapes: under `commands`, and what they share under `$defs`."""
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

    found, shared = TypeAdapter.json_schemas(
        [(name, "serialization", TypeAdapter(shape)) for name, shape in shapes.items()],
        title="What the commands of study-ingest print with --json",
    )
    commands = {name: schema for (name, _), schema in found.items()}
    return {"$schema": GenerateJsonSchema.schema_dialect, **shared, "commands": commands}
