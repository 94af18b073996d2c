"""The worker's metrics, by Prometheus' conventions: base units, `_total`, `_seconds`.

Each process has one set. Whoever knows a fact records it here with one line. Labels have few
values. They are never a uuid or a user, and name a viewer only among a limited number of them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal

from prometheus_client import Counter, Gauge, Histogram, Info

from schemas.words import RejectReason

_SHORT: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG: Final = (
    *(0.01, 0.05, 0.25, 1, 5, 30, 120, 600, 3_600, 21_600),
    *(86_400, 3 * 86_400, 7 * 86_400, 30 * 86_400, 90 * 86_400),
)
"""Seconds, from a hundredth to three months, because a phone may come back after a season."""

BUILD: Final = Info("study_ingest_build", "The version of the worker, and of its Python.")
SETTLED: Final = Counter(
    "study_ingest_deliveries_settled",
    "Deliveries settled, by disposition. The reason is empty unless they were rejected.",
    ["disposition", "reason"],
)
RETURNED: Final = Counter(
    "study_ingest_deliveries_returned",
    "Deliveries that were returned to the broker unsettled.",
    ["how"],
)
BUSY: Final = Counter(
    "study_ingest_batches_busy",
    "Batches left for a later group, because another worker held their principal.",
)
GROUP_SIZE: Final = Histogram(
    "study_ingest_group_size_batches",
    "The number of batches in one transaction.",
    buckets=(1, 2, 5, 10, 20, 30, 40, 50, 75, 100, 200),
)
STAGE: Final = Histogram(
    "study_ingest_stage_duration_seconds",
    "Time that a group spends in one stage.",
    ["stage"],
    buckets=_SHORT,
)
_AGE: Final = Histogram(
    "study_ingest_batch_age_seconds",
    "Age of an ingested batch by where it grew old: at the viewer (last answer to publish), in"
    " the broker (publish to arrival), in the worker (arrival to settled).",
    ["place"],
    buckets=_LONG,
)
AGE_AT_VIEWER: Final = _AGE.labels("viewer")
AGE_IN_BROKER: Final = _AGE.labels("broker")
AGE_IN_WORKER: Final = _AGE.labels("worker")
RECORDED_TO_COMMITTED: Final = Histogram(
    "study_ingest_recorded_to_committed_seconds",
    "Time from a batch's last answer to the commit that ingested it.",
    buckets=_LONG,
)
BATCHES_BY_VERSION: Final = Counter(
    "study_ingest_batches_by_version",
    "Batches by the version of their message, which shows the versions that are still in use.",
    ["version"],
)
_TIMES_REPLACED: Final = Counter(
    "study_ingest_times_replaced",
    "Attempts whose time as sent can't be true, by viewer and by reason. The clock of such a device"
    " is wrong.",
    ["viewer", "time_was"],
)
FAILED: Final = Counter(
    "study_ingest_groups_failed",
    "Groups whose transaction failed, by type of error.",
    ["error"],
)
PAUSED: Final = Counter(
    "study_ingest_pauses", "Number of times that consuming was paused.", ["cause"]
)
IS_PAUSED: Final = Gauge(
    "study_ingest_paused", "1 while consuming is paused for this cause.", ["cause"]
)
RESUBSCRIBED: Final = Counter(
    "study_ingest_consumer_restored", "Number of times that the worker had to subscribe again."
)
IN_HAND: Final = Gauge("study_ingest_deliveries_in_hand", "Deliveries that are not settled yet.")
PARTITIONS: Final = Gauge(
    "study_ingest_partitions", "Partitions of the queue that this worker consumes."
)
UNCONFIRMED: Final = Gauge(
    "study_ingest_copies_unconfirmed",
    "Deliveries in hand that should wait in the broker, which does not confirm their copies.",
)
READY: Final = Gauge("study_ingest_ready", "1 while the worker is proved to be consuming.")
LAST_PROGRESS: Final = Gauge(
    "study_ingest_last_progress_timestamp_seconds", "Time at which a delivery was last settled."
)
RELAYED: Final = Counter(
    "study_ingest_outbox_relayed",
    "Outbox messages published, by whether the broker confirmed them.",
    ["outcome"],
)
PROGRESS_REQUESTS: Final = Counter(
    "study_ingest_progress_requests",
    "Requests for progress, by what became of them. Dropped ones are beyond a viewer's rate, or of"
    " an unknown sender.",
    ["outcome"],
)
ANSWER_DURATION: Final = Histogram(
    "study_ingest_progress_answer_duration_seconds",
    "Time to answer a request for progress.",
    buckets=_SHORT,
)
NUDGES: Final = Counter(
    "study_ingest_progress_nudges", "Nudges published to viewers of users whose progress changed."
)
COLLECTED: Final = Counter(
    "study_ingest_dead_letters_collected",
    "Messages that the broker gave up on, or an older worker rejected, taken into the database.",
    ["reason"],
)
REPLAYED: Final = Counter(
    "study_ingest_dead_letters_replayed",
    "Dead letters published once more, by whether the broker confirmed.",
    ["outcome"],
)
_LETTERS: Final = Gauge(
    "study_ingest_dead_letters_waiting",
    "Dead letters that wait for a decision, by viewer. Each viewer's are counted up to"
    " INGEST_DEAD_LETTERS_PER_VIEWER.",
    ["viewer"],
)
LETTERS_PER_VIEWER: Final = Gauge(
    "study_ingest_dead_letters_per_viewer_max",
    "The number of dead letters from which a viewer's hopeless ones are cut.",
)
VIEWERS_SILENT: Final = Gauge(
    "study_ingest_viewers_silent",
    "Viewers that published every week, and nothing for the last one to three weeks.",
)
PRUNED: Final = Counter(
    "study_ingest_pruned", "Rows that were pruned, by kind: results, audit, moments.", ["kind"]
)
OUTBOX_ROWS: Final = Gauge(
    "study_ingest_outbox_waiting_messages", "Outbox rows that are not relayed yet (up to 100,000)."
)
OUTBOX_AGE: Final = Gauge(
    "study_ingest_outbox_oldest_age_seconds", "Age of the oldest outbox row, or 0 if there is none."
)
POOL: Final = Gauge(
    "study_ingest_database_connections", "Database connections of this process.", ["state"]
)
POOL_MAX: Final = Gauge(
    "study_ingest_database_connections_max",
    "The most database connections that this process opens.",
)

VIEWERS_TOLD_APART: Final = 200
"""The number of viewers with a label of their own. All later ones share one label."""
_MINORS_TOLD_APART: Final = 20
"""The number of minor versions with a label of their own, because anybody can send any version."""

Stage = Literal["read", "ingest", "settle"]


@contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Measures the time of the block as one stage."""
    with STAGE.labels(name).time():
        yield


def time_replaced(viewer: str | None, time_was: str) -> None:
    """Counts one attempt whose time was replaced."""
    label = viewer or "unknown"
    if label not in _viewers_seen and len(_viewers_seen) == VIEWERS_TOLD_APART:
        label = "others"
    _viewers_seen.add(label)
    _TIMES_REPLACED.labels(label, time_was).inc()


_viewers_seen: Final = {"others"}


def letters_waiting(by_viewer: Mapping[str, int]) -> None:
    """Replaces what was known of the dead letters that wait."""
    labels = {viewer or "unknown": letters for viewer, letters in by_viewer.items()}
    for gone in _viewers_with_letters - labels.keys():
        _LETTERS.remove(gone)
    for label, letters in labels.items():
        _LETTERS.labels(label).set(letters)
    _viewers_with_letters.clear()
    _viewers_with_letters.update(labels)


_viewers_with_letters: Final[set[str]] = set()


def reason_label(reason: str) -> str:
    """The label of a dead letter's reason: few values, whatever an older worker wrote."""
    return reason if reason in {*RejectReason} else "other"


def version_label(version: tuple[int, int]) -> str:
    """The label for a batch's version. It has few values, whatever a publisher sends."""
    major, minor = version
    if major != 1:
        return "newer"
    return f"1.{minor}" if minor < _MINORS_TOLD_APART else f"1.{_MINORS_TOLD_APART}+"
