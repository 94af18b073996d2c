"""The AMQP side of the wire: names of exchanges, queues, routing keys, types and headers.

It contains only names, and small functions that build or read them.
"""

import re
from collections.abc import Mapping
from typing import Final

INGEST_EXCHANGE: Final = "study.ingest"
PARTITIONS_EXCHANGE: Final = "study.attempts.partitions"
"""Where the queue is partitioned: deals batches out to the partitions by a hash of the routing key,
and so of the viewer.
"""
ATTEMPTS_QUEUE: Final = "study.attempts"
ATTEMPTS_BINDING: Final = "attempts.v1.#"
NEWER_BINDING: Final = "attempts.#"
"""Includes batches of a newer major version, which wait until a worker can read them."""
NEWER_QUEUE: Final = "study.attempts.newer"
"""The queue in which they wait. They return from time to time, until a newer worker takes them."""

RETRY_QUEUE_PREFIX: Final = "study.attempts.retry."
"""Followed by the delay in milliseconds. A message waits there and then returns."""
RETURN_EXCHANGE: Final = "study.attempts.return"
"""The exchange to which retry queues send messages that have waited. No viewer may publish to it,
so a delivery from this exchange comes from a worker, and its `study-*` headers can be trusted.
"""

DEAD_EXCHANGE: Final = "study.attempts.dlx"
DEAD_QUEUE: Final = "study.attempts.dead"

RESULTS_EXCHANGE: Final = "study.results"
"""What goes to viewers: results, and progress."""
RESULTS_BINDING: Final = "result.*"
"""Binds the results of all viewers."""

PROGRESS_QUEUE: Final = "study.progress"
"""The queue in which requests for progress wait. Not durable messages, and not for long."""
PROGRESS_REQUESTS_BINDING: Final = "progress.v1.*"
PROGRESS_BINDING: Final = "progress.*"
"""Binds the pages, refusals and nudges of all viewers."""
FOLLOWUPS_EXCHANGE: Final = "study.followups"
"""Follow-up jobs, each under the routing key of its kind: see `followups.KINDS`."""

ATTEMPT_BATCH_TYPE: Final = "study.attempt_batch.v1"
INGEST_RESULT_TYPE: Final = "study.ingest_result.v1"
PROGRESS_REQUEST_TYPE: Final = "study.progress_request.v1"
PROGRESS_PAGE_TYPE: Final = "study.progress_page.v1"
PROGRESS_REFUSAL_TYPE: Final = "study.progress_refusal.v1"
PROGRESS_NUDGE_TYPE: Final = "study.progress_nudge.v1"
CHECK_TYPE: Final = "study.check.v1"
CHECKED_TYPE: Final = "study.checked.v1"
RECALL_TYPE: Final = "study.recall.v1"
CONTENT_TYPE: Final = "application/json"

CLIENT_SESSION_UUID_HEADER: Final = "client-session-uuid"
TRACEPARENT_HEADER: Final = "traceparent"
PRINCIPAL_HEADER: Final = "study-principal"
"""For which of its users a viewer with several grants sends a batch on shared questions. It chooses
among the viewer's grants, and never adds one.
"""
VIEWER_HEADER: Final = "study-viewer"
ROUTING_KEY_HEADER: Final = "study-routing-key"
RETRIES_HEADER: Final = "study-retries"
"""How often a worker has deferred the message. It is our own header, because brokers from 4.0 on
ignore `x-death` in a client's message.
"""
REASON_HEADER: Final = "study-reason"
DETAIL_HEADER: Final = "study-detail"
PARKED_AT_HEADER: Final = "study-parked-at"
EPOCH_HEADER: Final = "study-epoch"
"""On what workers send to viewers: the epoch of the server that had the message when it was
published (docs/progress.md has the word).
"""
REPLAY_HEADER: Final = "study-replay"
"""The id of the replay that brought a dead letter back; the copies of it carry it on."""

VIEWER_PATTERN: Final = r"^[A-Za-z0-9_-]{1,64}$"
"""A viewer's name is one word of a routing key and a part of queue names: no dots, no wildcards."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_USER = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_INT64 = 2**63
_PARTITION = re.compile(r"study\.attempts\.[1-9][0-9]*")
_VIEWER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ATTEMPTS_KEY = re.compile(r"attempts\.v([1-9][0-9]{0,2})\.([A-Za-z0-9_-]{1,64})")
_REQUEST_KEY = re.compile(r"progress\.v1\.([A-Za-z0-9_-]{1,64})")
_BATCH_TYPE = re.compile(r"study\.attempt_batch\.v([1-9][0-9]{0,2})(?:\.([0-9]{1,4}))?")


def partition_queue(number: int) -> str:
    """The queue of a partition; the first one has number 1."""
    return f"{ATTEMPTS_QUEUE}.{number}"


def is_partition(queue: str) -> bool:
    """Whether this is the queue of a partition."""
    return _PARTITION.fullmatch(queue) is not None


def is_viewer(name: str) -> bool:
    """Whether `name` is a valid viewer's name (see `VIEWER_PATTERN`)."""
    return _VIEWER.fullmatch(name) is not None


def attempts_key(viewer: str) -> str:
    """The routing key with which `viewer` publishes its batches.

    Raises ValueError if the name is not one word of letters, digits, `-` and `_`.
    """
    return f"attempts.v1.{_checked(viewer)}"


def viewer_of_key(routing_key: str) -> str | None:
    """The viewer in a batch's routing key, whatever the version. None if there is none."""
    match = _ATTEMPTS_KEY.fullmatch(routing_key)
    return match[2] if match else None


def result_key(viewer: str) -> str:
    """The routing key of results for `viewer`. Raises ValueError like `attempts_key`."""
    return f"result.{_checked(viewer)}"


def results_queue(viewer: str) -> str:
    """The durable queue in which results wait for `viewer`. Raises ValueError likewise."""
    return f"study.results.{_checked(viewer)}"


def progress_request_key(viewer: str) -> str:
    """The routing key with which `viewer` asks for progress. Raises ValueError likewise."""
    return f"progress.v1.{_checked(viewer)}"


def viewer_of_request(routing_key: str) -> str | None:
    """The viewer in a request's routing key. None if there is none."""
    match = _REQUEST_KEY.fullmatch(routing_key)
    return match[1] if match else None


def progress_key(viewer: str) -> str:
    """The routing key of pages, refusals and nudges for `viewer`. Raises ValueError likewise."""
    return f"progress.{_checked(viewer)}"


def progress_queue(viewer: str) -> str:
    """The queue of pages, refusals and nudges for `viewer`. Raises ValueError likewise."""
    return f"study.progress.{_checked(viewer)}"


def followups_queue(routing_key: str) -> str:
    """The durable queue that keeps follow-up jobs of one kind until a service takes them."""
    return f"{FOLLOWUPS_EXCHANGE}.{routing_key}"


def version_of_batch(message_type: str | None, routing_key: str) -> tuple[int, int] | None:
    """The (major, minor) version of a batch, from its type or else from its routing key. None if
    neither has it.
    """
    if message_type:
        match = _BATCH_TYPE.fullmatch(message_type)
        return (int(match[1]), int(match[2] or 0)) if match else None
    match = _ATTEMPTS_KEY.fullmatch(routing_key)
    return (int(match[1]), 0) if match else None


def principal_of(headers: Mapping[str, object]) -> int | None:
    """The user for whom a viewer says that it sends the batch; None if it does not say.

    Raises ValueError if that is no user's number: an integer of 64 bits, or such a number as text.
    """
    said = headers.get(PRINCIPAL_HEADER)
    if said is None:
        return None
    if isinstance(said, str) and _USER.fullmatch(said):
        said = int(said)
    if isinstance(said, int) and not isinstance(said, bool) and -_INT64 <= said < _INT64:
        return said
    raise ValueError(f"the header {PRINCIPAL_HEADER} is not the number of a user")


def traceparent_of(headers: Mapping[str, object]) -> str | None:
    """The W3C trace context in a message's headers; None where there is none, or an odd one."""
    said = headers.get(TRACEPARENT_HEADER)
    return said if isinstance(said, str) and _TRACEPARENT.fullmatch(said) else None


def batch_type(major: int, minor: int) -> str:
    """The type of a batch of this version."""
    whole = ATTEMPT_BATCH_TYPE.removesuffix("1") + str(major)
    return f"{whole}.{minor}" if minor else whole


def _checked(viewer: str) -> str:
    if not is_viewer(viewer):
        raise ValueError(
            f"viewer name {viewer!r} is not 1 to 64 letters, digits, '-' or '_': choose another"
        )
    return viewer
