"""The checker: compares every row and message that a run left with docs/contract.md.

It depends on the evidence and on the contract, and not on the worker's code. Each violation is a
sentence that names the batch or the row. No violation means that nothing was lost or doubled.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

from chaos.evidence import Evidence, Recorded, Row
from chaos.expected import Ingested, Replay, Verdict, verdict

_GIVEN_UP: Final = {"retries_exhausted", "delivery_limit"}
"""The reasons of dead letters that no content requires. A fault of the servers is no batch's fault,
and the contract charges it to none, so that it exhausts nobody's retries.
"""
_SAME: Final = 1e-9
"""The relative difference up to which two floating-point results count as equal."""


class Violation(NamedTuple):
    """What is wrong, in one sentence that names the batch or row."""

    kind: Literal["lost", "doubled", "wrong"]
    sentence: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.sentence}"


@dataclass(slots=True)
class Case:
    """The evidence, and what the contract requires for it.

    `accepted` are the batches in the inbox.
    """

    found: Evidence
    verdicts: dict[UUID, Verdict] = field(default_factory=dict)
    accepted: dict[UUID, Ingested] = field(default_factory=dict)
    inbox: dict[UUID, Row] = field(default_factory=dict)
    parked: dict[UUID, set[str]] = field(default_factory=dict)
    replay: Replay = field(default_factory=Replay)


def check(found: Evidence) -> list[Violation]:
    """Every violation. Empty if the law holds."""
    case = judge(found)
    return [violation for rule in RULES for violation in rule(case)]


def judge(found: Evidence) -> Case:
    """Computes what the contract requires for the evidence. The rules compare the two."""
    case = Case(found)
    case.verdicts = {
        recorded.client_session_uuid: verdict(recorded, found.published)
        for recorded in found.recorded
    }
    case.inbox = {row["client_session_uuid"]: row for row in found.inbox}
    for parked in found.parked:
        if parked.client_session_uuid is not None and parked.mark is None:
            case.parked.setdefault(parked.client_session_uuid, set()).add(parked.reason)
    # A user's batches are ingested one at a time, so the ids of attempts tell in which order.
    order = {row["client_session_uuid"]: row["id"] for row in reversed(found.attempts)}
    good = [
        each for each in case.verdicts.values() if each.reason is None and each.uuid in case.inbox
    ]
    good.sort(key=lambda each: order.get(each.uuid, math.inf))
    # One transaction has one time of receipt: what a user's batches share one of came together.
    groups: dict[tuple[int | None, datetime], list[Verdict]] = {}
    for each in good:
        at = case.inbox[each.uuid]["received_at"]
        groups.setdefault((each.user_id, at), []).append(each)
    for (_, at), group in groups.items():
        for each, done in zip(group, case.replay.ingest_together(group, at), strict=True):
            case.accepted[each.uuid] = done
    return case


def outboxes_hold_what_was_played(case: Case) -> Iterator[Violation]:
    """The viewer's transaction stored both the session and its batch, or neither."""
    by_uuid: dict[UUID, list[Recorded]] = defaultdict(list)
    for recorded in case.found.recorded:
        by_uuid[recorded.client_session_uuid].append(recorded)
    for uuid, copies in by_uuid.items():
        if len(copies) > 1:
            yield doubled(f"Batch {uuid} is in {len(copies)} outboxes or rows instead of one.")
    for played in case.found.played:
        copies = by_uuid.pop(played.client_session_uuid, [])
        if not copies:
            yield lost(f"Session {played.client_session_uuid} of {played.viewer} left no batch.")
        elif _said(copies[0].body["attempts"]) != _said(played.attempts):
            yield wrong(f"Batch {played.client_session_uuid} is not what {played.viewer} recorded.")
    for uuid in by_uuid:
        yield wrong(f"Batch {uuid} is in an outbox, but no session was played.")


def _said(attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The attempts without fields that are null, which mean the same as absent ones."""
    return [
        {name: value for name, value in attempt.items() if value is not None}
        for attempt in attempts
    ]


def every_batch_came_to_its_end(case: Case) -> Iterator[Violation]:
    """Each batch is ingested, or a dead letter with the right reason, and its viewer got that
    result.
    """
    for recorded in case.found.recorded:
        uuid = recorded.client_session_uuid
        must = case.verdicts[uuid]
        parked = case.parked.get(uuid, set())
        where = f"Batch {uuid} of {recorded.viewer}"
        if must.reason is not None:
            if uuid in case.inbox:
                yield wrong(f"{where} was ingested, though it should be rejected ({must.reason}).")
            if must.reason not in parked:
                yield lost(f"{where} should be parked ({must.reason}), and is not.")
        elif uuid not in case.inbox and not parked:
            yield lost(f"{where} is lost: neither ingested nor parked.")
        if given_up := parked & _GIVEN_UP:
            yield wrong(f"{where} was given up ({sorted(given_up)}), though only servers failed.")
        if strange := parked - {must.reason} - _GIVEN_UP:
            yield wrong(f"{where} is parked for {sorted(strange)}, which it is not.")
        yield from _viewer_knows(case, recorded, must, where)


def _viewer_knows(case: Case, recorded: Recorded, must: Verdict, where: str) -> Iterator[Violation]:
    told = recorded.result
    if recorded.state != "settled" or told is None:
        yield lost(f"{where} is {recorded.state} in its outbox: no result arrived.")
        return
    row = case.inbox.get(must.uuid)
    if row is None:
        if told["status"] != "rejected":
            yield wrong(f"{where} was told {told['status']}, but the inbox does not have it.")
        elif told["reason"] not in (rightly := _refusals(case, must)):
            must_be = " or ".join(sorted(rightly)) or "that it was ingested"
            yield wrong(f"{where} was told {told['reason']}, and should be told {must_be}.")
    elif told["status"] not in ("ingested", "already_ingested"):
        yield wrong(f"{where} was told {told['status']}, though it was ingested.")
    elif not _same_result(told, row["summary"] or {}):
        yield wrong(f"{where} was told other things than its inbox row keeps.")


def _refusals(case: Case, must: Verdict) -> set[str]:
    """The reasons that its viewer may be told: the right one, or else those that are kept."""
    return {must.reason} if must.reason else case.parked.get(must.uuid, set())


def inbox_holds_each_batch_once(case: Case) -> Iterator[Violation]:
    """Each ingested batch has one row with the digest of its content, the principal and the
    result.
    """
    for uuid, count in Counter(row["client_session_uuid"] for row in case.found.inbox).items():
        if count > 1:
            yield doubled(f"The inbox has batch {uuid} {count} times.")
    outboxes = {each.client_session_uuid: each for each in case.found.recorded}
    for uuid, row in case.inbox.items():
        must = case.verdicts.get(uuid)
        if must is None:
            yield wrong(f"The inbox has batch {uuid}, which no viewer recorded.")
            continue
        if not must.digest == row["content_digest"] == outboxes[uuid].digest:
            yield wrong(f"The digest of batch {uuid} is not that of its content.")
        if uuid in case.accepted and must.user_id != row["user_id"]:
            yield wrong(f"Batch {uuid} belongs to user {must.user_id}, not {row['user_id']}.")


def summaries_are_right(case: Case) -> Iterator[Violation]:
    """The stored results are right: the skipped attempts, and six counts for each session."""
    for uuid, done in case.accepted.items():
        summary = case.inbox[uuid]["summary"] or {}
        if summary.get("client_session_uuid") != str(uuid) or summary.get("status") != "ingested":
            yield wrong(f"The inbox keeps no receipt of batch {uuid}.")
            continue
        skipped = [{key: each[key] for key in each} for each in summary.get("skipped", [])]
        if skipped != case.verdicts[uuid].skipped:
            yield wrong(
                f"Batch {uuid} should have skipped {case.verdicts[uuid].skipped}, not {skipped}."
            )
        told = {each["topic_id"]: each for each in summary.get("sessions", [])}
        if told.keys() != done.summaries.keys() or len(told) != len(summary["sessions"]):
            yield wrong(f"The receipt of batch {uuid} names topics {sorted(told)}.")
            continue
        for topic_id, must in done.summaries.items():
            if differing := _differing(must, told[topic_id]):
                yield wrong(f"The summary of batch {uuid}, topic {topic_id}: {differing}.")


def sessions_and_attempts_are_the_batches(case: Case) -> Iterator[Violation]:
    """No quiz session or attempt is missing, doubled or different."""
    sessions: dict[tuple[UUID, int], list[Row]] = defaultdict(list)
    for row in case.found.sessions:
        sessions[row["client_session_uuid"], row["study_topic_id"]].append(row)
    attempts: dict[tuple[UUID, int], list[Row]] = defaultdict(list)
    for row in case.found.attempts:
        attempts[row["client_session_uuid"], row["position"]].append(row)
    for uuid, done in case.accepted.items():
        ids = {}
        for topic_id, must in done.sessions.items():
            rows = sessions.pop((uuid, topic_id), [])
            yield from _one(f"session of batch {uuid} on topic {topic_id}", rows, must)
            ids[topic_id] = {row["id"] for row in rows}
        for position, must in done.attempts.items():
            rows = attempts.pop((uuid, position), [])
            yield from _one(f"attempt {position} of batch {uuid}", rows, must)
            topic_id = must["study_topic_id"]
            if any(row["quiz_session_id"] not in ids[topic_id] for row in rows):
                yield wrong(f"The attempt {position} of batch {uuid} is in another session.")
    for uuid, topic_id in sessions:
        yield doubled(f"There is a session of batch {uuid} on topic {topic_id} that should not be.")
    for uuid, position in attempts:
        yield doubled(f"There is an attempt {position} of batch {uuid} that should not be.")


def progress_is_the_fold(case: Case) -> Iterator[Violation]:
    """Each progress row equals the checker's own fold of all attempts."""
    rows: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in case.found.progress:
        rows[row["user_id"], row["study_question_id"]].append(row)
    schedulers = {row["scheduler"] for row in case.found.progress}
    if len(schedulers) > 1:
        yield wrong(
            f"Progress was scheduled by {len(schedulers)} schedulers: {sorted(schedulers)}."
        )
    for key, history in case.replay.histories.items():
        must = history.progress() | {
            "study_topic_id": case.replay.topics[key],
            "explanation_requested": key in case.replay.explained,
        }
        place = f"progress of user {key[0]} on question {key[1]}"
        yield from _one(place, rows.pop(key, []), must)
    for user_id, question_id in rows:
        yield wrong(
            f"There is progress of user {user_id} on question {question_id} without attempts."
        )


def devices_hold_the_stored_progress(case: Case) -> Iterator[Violation]:
    """Each viewer holds exactly what is stored for the users that it is granted, under the ids that
    are published, and nothing of anybody else.
    """
    live: dict[int, list[str]] = defaultdict(list)
    for pub_id, question in sorted(case.found.published.items()):
        if not question["withdrawn"] and not question["deleted"]:
            live[question["id"]].append(pub_id)
    held: dict[tuple[str, int], dict[int | str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for each in case.found.held:
        held[each.viewer, each.user_id][each.question].append(each.row)
    for viewer, users in case.found.granted.items():
        for user_id in users:
            mine = held.pop((viewer, user_id), {})
            for row in case.found.progress:
                if row["user_id"] == user_id:
                    question_id = row["study_question_id"]
                    place = f"question {question_id} of user {user_id} on {viewer}"
                    must = _on_a_device(row, live[question_id])
                    yield from _one(place, mine.pop(question_id, []), must)
            for other in mine:
                yield wrong(f"On {viewer}, user {user_id} has question {other}, and should not.")
    for (viewer, user_id), mine in held.items():
        if any(isinstance(other, int) for other in mine):  # a result may tell of any user
            yield wrong(f"The viewer {viewer} has progress of user {user_id} without a grant.")


def _on_a_device(stored: Row, pub_ids: list[str]) -> Row:
    """A row of progress as a viewer keeps it."""
    same = ("version", "last_outcome", "stability", "pattern")
    counts = {name: stored[f"{name}_count"] for name in ("correct", "wrong", "unsure")}
    times = {
        name: stored[name].astimezone(UTC).isoformat(timespec="microseconds")
        for name in ("last_answered_at", "due_at")
    }
    days = (stored["due_at"] - stored["last_answered_at"]).days
    whole = {"pub_ids": json.dumps(pub_ids), "interval_days": days}
    return {name: stored[name] for name in same} | counts | times | whole


def results_on_the_wire_are_right(case: Case) -> Iterator[Violation]:
    """Each ingested batch has one result `ingested`, under one id, and no result is false."""
    bodies: dict[str, Row] = {}
    ingested: dict[UUID, set[str]] = defaultdict(set)
    strange = _strange_expectations(case)
    for told in case.found.told:
        uuid = UUID(told.body["client_session_uuid"])
        status = told.body["status"]
        if bodies.setdefault(told.message_id, told.body) != told.body:
            yield doubled(f"The message {told.message_id} came with two contents.")
        if status == "ingested":
            ingested[uuid].add(told.message_id)
        if status == "rejected":
            must = case.verdicts.get(uuid)
            allowed = strange[uuid] | (_refusals(case, must) if must else set())
            if told.body["reason"] not in allowed:
                yield wrong(f"Batch {uuid} was refused as {told.body['reason']} on the wire.")
        elif uuid not in case.inbox:
            yield wrong(f"Batch {uuid} was told {status}, but the inbox does not have it.")
        elif not _same_result(told.body, case.inbox[uuid]["summary"] or {}):
            yield wrong(
                f"Batch {uuid} was told {status} with other things than its inbox row keeps."
            )
    for uuid in case.inbox:
        if not ingested[uuid]:
            yield lost(f"The result of batch {uuid} never reached the broker.")
        elif len(ingested[uuid]) > 1:
            yield doubled(f"Batch {uuid} was told `ingested` under {len(ingested[uuid])} ids.")


def followups_are_right(case: Case) -> Iterator[Violation]:
    """Each follow-up job was requested exactly once, with the right content, and no other was.

    The same message may be published again. Other content, or another id, is a second job.
    """
    sessions = {row["id"]: row for row in case.found.sessions}
    contents: dict[str, Row] = {}
    for job in case.found.jobs:
        if contents.setdefault(job.message_id, job.body) != job.body:
            yield doubled(f"The job {job.message_id} came with two contents.")
    kinds = {job.message_id: job.routing_key for job in case.found.jobs}
    jobs: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for message_id, body in contents.items():
        session = sessions.get(UUID(body["quiz_session_id"]), {})
        uuid, topic_id = session.get("client_session_uuid"), session.get("study_topic_id")
        jobs[uuid, kinds[message_id], topic_id, body.get("question_id")].append(body)
    for uuid, done in case.accepted.items():
        for (kind, topic_id, question_id), must in done.jobs.items():
            place = f"job {kind} from batch {uuid} on topic {topic_id}, question {question_id}"
            rows = jobs.pop((uuid, kind, topic_id, question_id), [])
            yield from _one(place, rows, must | {"topic_id": topic_id})
    for uuid, kind, *rest in jobs:
        yield doubled(f"There is a job {kind} {rest} from batch {uuid} that should not be.")


def strangers_were_answered(case: Case) -> Iterator[Violation]:
    """Each message from no outbox is parked for its own reason, or was an echo and is not."""
    reasons: dict[str, set[str]] = defaultdict(set)
    for parked in case.found.parked:
        if parked.mark is not None:
            reasons[parked.mark].add(parked.reason)
    statuses: dict[UUID, set[str]] = defaultdict(set)
    for told in case.found.told:
        word = told.body.get("reason") or told.body["status"]
        statuses[UUID(told.body["client_session_uuid"])].add(word)
    for each in case.found.strange:
        parked_for = reasons.pop(each.mark, set())
        is_echo = each.expected == "already_ingested"
        if parked_for - {each.expected, each.or_else} or is_echo == bool(parked_for):
            yield wrong(
                f"Message {each.mark} ({each.expected}) is parked for {parked_for or 'nothing'}."
            )
        uuid = each.client_session_uuid
        if uuid is not None and each.expected not in statuses[uuid]:
            yield lost(f"Message {each.mark} was never answered with {each.expected}.")
    for mark in reasons:
        yield wrong(f"Message {mark} is parked, but the broker never confirmed it.")
    for parked in case.found.parked:
        unknown = parked.client_session_uuid not in case.verdicts
        if parked.mark is None and unknown:
            yield wrong(f"A batch {parked.client_session_uuid} is parked that nobody sent.")


def letters_are_kept_once(case: Case) -> Iterator[Violation]:
    """The same message, rejected for the same reason, is one letter, however often it came."""
    letters = Counter(
        (parked.reason, parked.message)
        for parked in case.found.parked
        if parked.message is not None
    )
    for (reason, message), count in letters.items():
        if count > 1:
            yield doubled(f"There are {count} letters ({reason}) of message {message[:36]!r}.")


def nothing_waits(case: Case) -> Iterator[Violation]:
    """The queues and the outbox table are empty."""
    for place, count in case.found.waiting.items():
        if count:
            yield lost(f"{count} messages still wait in {place}.")


def viewers_missed_nothing(case: Case) -> Iterator[Violation]:
    """No server that took over told a viewer that it lacks a batch which the viewer was told of.

    Each viewer that was told of something before another server took over, and again afterwards,
    asked that server.
    """
    for answer in case.found.checked:
        for uuid in answer.body["missing"]:
            yield lost(f"Batch {uuid} had been told of, and the server that took over lacked it.")
    if not case.found.promoted:
        return
    taken_over = math.floor(max(case.found.promoted))  # messages carry whole seconds
    asked = {answer.routing_key for answer in case.found.checked if answer.sent >= taken_over}
    if not asked:
        yield wrong("Another server took over, and no viewer asked it what it has.")
    before = {told.routing_key for told in case.found.told if told.sent < taken_over}
    after = {told.routing_key for told in case.found.told if told.sent > taken_over}
    viewers = {f"result.{recorded.viewer}": recorded.viewer for recorded in case.found.recorded}
    for key in sorted((before & after & viewers.keys()) - asked):
        yield wrong(f"Another server took over, and {viewers[key]} did not ask it what it has.")


def operators_were_shown_what_happened(case: Case) -> Iterator[Violation]:
    """Each look during a fault showed what it had to show."""
    for look in case.found.looks:
        if look.must not in look.shown:
            shown = ", ".join(look.shown) or "nothing"
            yield wrong(f"{look.what} said {shown} during {look.during}, and not {look.must}.")


RULES: Final[tuple[Callable[[Case], Iterator[Violation]], ...]] = (
    outboxes_hold_what_was_played,
    every_batch_came_to_its_end,
    inbox_holds_each_batch_once,
    summaries_are_right,
    sessions_and_attempts_are_the_batches,
    progress_is_the_fold,
    devices_hold_the_stored_progress,
    results_on_the_wire_are_right,
    followups_are_right,
    strangers_were_answered,
    letters_are_kept_once,
    nothing_waits,
    viewers_missed_nothing,
    operators_were_shown_what_happened,
)


def lost(sentence: str) -> Violation:
    """Something that was recorded has left no trace, or a wrong one."""
    return Violation("lost", sentence)


def doubled(sentence: str) -> Violation:
    """Something took effect more than once, or without a cause."""
    return Violation("doubled", sentence)


def wrong(sentence: str) -> Violation:
    """Something exists once, and is not as it should be."""
    return Violation("wrong", sentence)


def _one(what: str, rows: list[Row], must: Mapping[str, Any]) -> Iterator[Violation]:
    if not rows:
        yield lost(f"There is none: {what}.")
    elif len(rows) > 1:
        yield doubled(f"There are {len(rows)} instead of one: {what}.")
    elif differing := _differing(must, rows[0]):
        yield wrong(f"The {what}: {differing}.")


def _differing(must: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Describes each value that differs from what it must be. Empty if there is none."""
    return "; ".join(
        f"{name} is {row.get(name)}, should be {value}"
        for name, value in must.items()
        if not _same(row.get(name), value)
    )


def _same(found: object, must: object) -> bool:
    if isinstance(found, float) and isinstance(must, float):
        return math.isclose(found, must, rel_tol=_SAME)
    return found == must


def _same_result(told: Row, kept: Row) -> bool:
    """Whether a viewer got the result that the inbox keeps. The status may be
    'already_ingested'.
    """
    return _trimmed(told) == _trimmed(kept)


def _trimmed(result: Row) -> Row:
    return {
        key: value
        for key, value in result.items()
        if value is not None and value != [] and key != "status"
    }


def _strange_expectations(case: Case) -> dict[UUID, set[str]]:
    found: dict[UUID, set[str]] = defaultdict(set)
    for each in case.found.strange:
        if each.client_session_uuid is not None:
            found[each.client_session_uuid].add(each.expected)
    return found
