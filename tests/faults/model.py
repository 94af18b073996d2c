"""A model of the ingest transaction in memory: what the tables must hold after each step.

It uses the chaos checker's second implementation of docs/contract.md (`chaos.expected`,
`chaos.fold`) and nothing from the worker. Only the time of receipt of each batch comes from the
database.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any, Final
from uuid import UUID

from chaos.evidence import Recorded, Row
from chaos.expected import Ingested, Replay, Verdict, verdict
from chaos.fold import History

Said = tuple[str, Row]
"""Routing key and content of a message, as far as they are compared."""

_VIEWER: Final = "phone"


@dataclass
class Kept:
    """An ingested batch."""

    verdict: Verdict
    done: Ingested
    told: Row
    voided: bool = False


@dataclass
class Model:
    """Everything that ingest, void and relay change."""

    published: dict[str, Row] = field(default_factory=dict)
    inbox: dict[UUID, Kept] = field(default_factory=dict)
    replay: Replay = field(default_factory=Replay)
    outbox: list[Said] = field(default_factory=list)
    left: list[Said] = field(default_factory=list)
    """What the relay has taken away."""

    def deliver(self, bodies: Sequence[Row], received: Mapping[UUID, datetime]) -> list[str]:
        """Some deliveries, handed in together; how each must be disposed of.

        `received` is when the inbox says that each batch came. Those of one time were committed
        by one transaction.
        """
        musts = [self._verdict(body) for body in bodies]
        new: dict[UUID, Verdict] = {}
        for must in musts:
            if must.reason is None and must.uuid not in self.inbox:
                new.setdefault(must.uuid, must)
        done: dict[UUID, Ingested] = {}
        for at, some in groupby(new.values(), lambda must: received[must.uuid]):
            group = [*some]
            together = self.replay.ingest_together(group, at)
            done |= {must.uuid: each for must, each in zip(group, together, strict=True)}
        return [self._disposition(must, done) for must in musts]

    def _verdict(self, body: Row) -> Verdict:
        uuid = UUID(body["client_session_uuid"])
        return verdict(Recorded(_VIEWER, uuid, b"", body, "", None, 0), self.published)

    def _disposition(self, must: Verdict, new: Mapping[UUID, Ingested]) -> str:
        uuid = must.uuid
        kept = self.inbox.get(uuid)
        if kept is not None and kept.verdict.digest == must.digest:
            self._say(kept.told | {"status": "already_ingested"})
            return "duplicate"
        reason = "uuid_reused" if kept is not None else must.reason
        if reason is not None:
            self._say({"client_session_uuid": str(uuid), "status": "rejected", "reason": reason})
            return reason
        done = new[uuid]
        told = {
            "client_session_uuid": str(uuid),
            "status": "ingested",
            "sessions": {str(topic): counts for topic, counts in done.summaries.items()},
            "skipped": must.skipped,
        }
        self.inbox[uuid] = Kept(must, done, told)
        for (kind, topic_id, question_id), job in done.jobs.items():
            about = {"of": uuid} if question_id is None else {"question_id": question_id}
            self.outbox.append((kind, job | {"topic_id": topic_id} | about))
        self._say(dict(told))
        return "ingested"

    def void(self, uuid: UUID) -> None:
        """Its answers leave the fold, and jobs that have not left yet are wanted no more."""
        kept = self.inbox[uuid]
        if kept.voided:
            return
        kept.voided = True
        # Whoever is told of it again hears that none of its sessions counts.
        kept.told["sessions"] = {}
        self.outbox = [each for each in self.outbox if each[1].get("of") != uuid]
        for counted in kept.verdict.counted:
            key = (kept.verdict.user_id or 0, counted.question["id"])
            before = self.replay.histories.pop(key, History())
            after = History()
            for answer in before.answers:
                if answer.session != uuid:
                    after.add(answer)
            if after.answers:
                self.replay.histories[key] = after
            elif before.answers:
                self.replay.explained.discard(key)
                self.outbox = [each for each in self.outbox if not _explains(each, key)]
        self._say(kept.told | {"status": "already_ingested"})

    def relay(self) -> None:
        """All that waits has left."""
        self.left += self.outbox
        self.outbox = []

    def progress(self) -> dict[tuple[int, int], Row]:
        """Every progress row."""
        return {
            key: history.progress()
            | {
                "study_topic_id": self.replay.topics[key],
                "explanation_requested": key in self.replay.explained,
            }
            for key, history in self.replay.histories.items()
        }

    def attempts(self) -> Iterator[tuple[tuple[UUID, int], Row]]:
        """Every attempt on record, of voided sessions too."""
        for uuid, kept in self.inbox.items():
            for position, row in kept.done.attempts.items():
                yield (uuid, position), row

    def sessions(self) -> Iterator[tuple[tuple[UUID, int], Row]]:
        """Every quiz session on record."""
        for uuid, kept in self.inbox.items():
            for topic_id, row in kept.done.sessions.items():
                yield (uuid, topic_id), row | {"is_voided": kept.voided}

    def _say(self, told: Row) -> None:
        self.outbox.append((f"result.{_VIEWER}", told))


def _explains(said: Said, key: tuple[int, int]) -> bool:
    routing_key, job = said
    is_explanation = routing_key == "explanation.requested"
    return is_explanation and (job["user_id"], job["question_id"]) == key


def as_said(routing_key: str, body: Row, batch_of: dict[str, Any]) -> Said:
    """A row of the outbox, in the model's words; `batch_of` has the batch of each session's id."""
    match routing_key:
        case "explanation.requested":
            kept = ("user_id", "question_id", "topic_id", "outcome")
            return routing_key, {name: body[name] for name in kept}
        case "review.requested":
            said = {name: body[name] for name in ("user_id", "topic_id", "questions")}
            return routing_key, said | {"of": batch_of[body["quiz_session_id"]]}
    said = {"client_session_uuid": body["client_session_uuid"], "status": body["status"]}
    if body["status"] == "rejected":
        return routing_key, said | {"reason": body["reason"]}
    counts = ("correct", "wrong", "unsure", "newly_correct", "recovered", "relapsed")
    sessions = {
        str(each["topic_id"]): {name: each[name] for name in counts}
        for each in body.get("sessions", [])
    }
    return routing_key, said | {"sessions": sessions, "skipped": body.get("skipped", [])}
