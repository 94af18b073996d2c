"""What the commands of version 0.1.0 printed with --json, as far as they had it."""

from typing import Any, Final, NotRequired

from typing_extensions import TypedDict


class RoleMade(TypedDict):
    role: str
    password: str


class Pause(TypedDict):
    since: str
    actor: str
    reason: str


class Paused(Pause):
    paused: bool
    changed: bool


class Resumed(TypedDict):
    paused: bool
    changed: bool
    ended: NotRequired[Pause]


class Verified(TypedDict):
    users: int
    differences: list[str]


class Rebuilt(TypedDict):
    users: int
    changed: int


class Voided(TypedDict):
    user_id: int
    sessions: int
    attempts: int
    progress: int


class Rescored(TypedDict):
    attempts: int
    sessions: int
    progress: int
    told: int


class Erased(TypedDict):
    user_id: int
    attempts: int
    sessions: int
    progress: int
    batches: int
    messages: int
    dead_letters: int
    dead_letters_left: int
    unattributed_dead_letters: int


class Imported(TypedDict):
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
    healthy: bool
    findings: list[Finding]


class Queue(TypedDict):
    name: str
    ready: int
    unacknowledged: int
    consumers: int
    published_per_second: float | None
    acknowledged_per_second: float | None


class DeadStatus(TypedDict):
    read: int
    by_reason: dict[str, int]
    oldest: str | None


class Broker(TypedDict):
    version: str
    queues: list[Queue]
    dead: DeadStatus | None


class PauseInForce(TypedDict):
    paused_at: str
    actor: str
    reason: str


class Backlog(TypedDict):
    messages: int
    oldest_age: float


class Database(TypedDict):
    schema: str | None
    schema_wanted: str
    pause: PauseInForce | None
    outbox: Backlog | None


class Status(TypedDict):
    healthy: bool
    at: str
    broker: Broker | None
    database: Database | None
    attention: list[str]


class Letter(TypedDict):
    died_at: str | None
    reason: str
    detail: str
    viewer: str | None
    routing_key: str
    client_session_uuid: str | None
    bytes: int


class LetterList(TypedDict):
    count: int
    letters: list[Letter]


class Difference(TypedDict):
    position: int
    field: str
    ingested: str
    in_letter: str


class WholeLetter(Letter):
    type: str | None
    message_id: str | None
    timestamp: str | None
    headers: dict[str, Any]
    body: str
    differences: list[Difference] | None


class Replayed(TypedDict):
    replayed: int


class Discarded(TypedDict):
    discarded: int


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
    question_id: int
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class MessageWritten(TypedDict):
    routing_key: str
    type: str
    body: str


class Rehearsed(Letter):
    would_be: str
    would_be_because: str | None
    would_say: str | None
    sessions: list[SessionWritten]
    attempts: list[AttemptWritten]
    progress: list[ProgressChange]
    messages: list[MessageWritten]


class ViewerMade(TypedDict):
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


class Topic(TypedDict):
    topic_id: int
    name: str
    seen: int
    mastered: int
    known: int
    due: int
    recall: float


class Stubborn(TypedDict):
    question_id: int
    pub_id: str | None
    topic: str
    pattern: str
    lapses: int
    attempts: int
    due_at: str


class Day(TypedDict):
    day: str
    due: int


class Week(TypedDict):
    monday: str
    reviews: int
    recalled: int


class Report(TypedDict):
    user_id: int
    made_at: str
    questions: int
    attempts: int
    known: int
    due: int
    recall: float
    retention: float | None
    topics: list[Topic]
    overdue: int
    forecast: list[Day]
    weeks: list[Week]
    patterns: dict[str, int]
    stubborn: list[Stubborn]


ANSWERS: Final[dict[str, Any]] = {
    "database-role": RoleMade,
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
    "import": Imported,
    "report": Report,
    "dead list": LetterList,
    "dead show": WholeLetter,
    "dead replay": Replayed,
    "dead replay --dry-run": Rehearsed,
    "dead discard": Discarded,
    "viewer add": ViewerMade,
    "viewer grant": ViewerGranted,
    "viewer revoke": ViewerRevoked,
    "viewer rotate": ViewerRotated,
    "viewer list": list[Viewer],
}
