"""The checker accepts a correct history, and finds every way in which it can be wrong.

The history is created once, with real outboxes and real ingest transactions, but without a broker.
Each test changes one thing in a copy of the evidence.
"""

import asyncio
import json
import pickle
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import text

from chaos import bank, checker
from chaos.checker import check
from chaos.evidence import (
    PLAYED_TABLE,
    Checked,
    Evidence,
    Job,
    Look,
    Parked,
    Strange,
    Told,
    read_database,
    read_outbox,
)
from chaos.quiz import session
from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from schemas.followups import KINDS
from schemas.ingest_result import IngestResult
from study_viewer import Outbox
from study_viewer.schemas.progress import ProgressPage
from tests.database_fixtures import _named, _settings
from tests.factories import grant, original
from worker.domain.dispositions import Rejected
from worker.domain.policy import Policy
from worker.ingest.resolve import Incoming
from worker.ingest.transaction import Ingest
from worker.progress.requests import Request, answer
from worker.store import schema
from worker.store.engine import make_engine

_SEED = 7
_VIEWERS = ("one", "two")
_SESSIONS_EACH = 30


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return asyncio.run(_story(tmp_path_factory.mktemp("outboxes")))


@pytest.fixture
def found(story: Evidence) -> Evidence:
    return _copy(story)


def _copy(story: Evidence) -> Evidence:
    copied: Evidence = pickle.loads(pickle.dumps(story))  # ten times as fast as deepcopy
    return copied


async def _story(folder: Path) -> Evidence:
    name = f"test_{uuid4().hex[:16]}"
    admin = await asyncpg.connect(_named("postgres"))
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        return await _told(folder, _named(name))
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


async def _told(folder: Path, url: str) -> Evidence:
    rng = random.Random(_SEED)
    found = Evidence()
    questions = bank.made_up(_SEED, users=2, questions_each=25)
    engine = make_engine(_settings(url), connections=2, name="tests")
    await schema.migrate(engine)
    await bank.publish(url, questions)
    for user_id in (1, 2):
        await grant(engine, _VIEWERS[0], user_id)
    ingest = Ingest(engine, Policy())

    incoming = []
    for viewer in _VIEWERS:
        with (
            Outbox(folder / viewer) as outbox,
            closing(sqlite3.connect(outbox.path)) as file,
            file,
        ):
            file.execute(PLAYED_TABLE)
            for number in range(_SESSIONS_EACH):
                attempts = session(rng, questions, [1, 2], number / _SESSIONS_EACH, 0)
                batch = _batch(UUID(int=rng.getrandbits(128), version=4), attempts)
                outbox.record(file, batch)  # type: ignore[arg-type]  # the same wire, copied into the library
                uuid = batch.client_session_uuid
                file.execute("INSERT INTO quiz VALUES (?, ?)", (str(uuid), json.dumps(attempts)))
                incoming.append(Incoming(viewer, batch, uuid, original=original(batch)))
    rng.shuffle(incoming)
    echo = next(each for each in incoming if len(each.content.attempts) > 4)  # type: ignore[union-attr]
    incoming += [
        *rng.choices(incoming, k=8),
        Incoming(
            "stranger", echo.content, echo.client_session_uuid, original=original(echo.content)
        ),
    ]
    for start in range(0, len(incoming), 5):
        group = incoming[start : start + 5]
        for each, disposition in zip(group, await ingest(group), strict=True):
            if isinstance(disposition, Rejected):
                parked = Parked(each.client_session_uuid, None, disposition.reason)
                found.parked.append(parked)
    found.strange = [
        Strange("strange-1", None, "malformed"),
        Strange("strange-2", echo.client_session_uuid, "already_ingested"),
    ]
    found.parked.append(Parked(None, "strange-1", "malformed"))

    async with engine.begin() as connection:
        rows = await connection.execute(
            text("DELETE FROM outbox RETURNING message_id, exchange, routing_key, body")
        )
        for message_id, exchange, routing_key, body in rows:
            kind: Any = Told if exchange == amqp.RESULTS_EXCHANGE else Job
            messages: list[Any] = found.told if kind is Told else found.jobs
            messages.append(kind(str(message_id), routing_key, json.loads(body)))
    for viewer in _VIEWERS:
        with Outbox(folder / viewer) as outbox:
            for told in found.told:
                if told.routing_key == amqp.result_key(viewer):
                    outbox.settle(IngestResult.model_validate(told.body))  # type: ignore[arg-type]  # as above
            for user_id in (1, 2):
                asked = Request(viewer, None, user_id)
                for message in await answer(engine, asked, lambda *_: None):
                    if message.properties.message_type == amqp.PROGRESS_PAGE_TYPE:
                        outbox.progress.apply(ProgressPage.model_validate_json(message.body))
        read_outbox(found, folder / viewer, viewer)
    await engine.dispose()
    await read_database(found, url)
    return found


def _batch(uuid: UUID, attempts: list[dict[str, Any]]) -> AttemptBatch:
    return AttemptBatch.model_validate({"client_session_uuid": uuid, "attempts": attempts})


def test_the_checker_accepts_a_correct_history(found: Evidence) -> None:
    assert check(found) == []


def test_the_correct_history_contains_every_case_of_the_rules(found: Evidence) -> None:
    assert len(found.inbox) > 40
    assert {parked.reason for parked in found.parked} >= {"mixed_principals", "nothing_resolved"}
    assert any(told.body["status"] == "already_ingested" for told in found.told)
    models = {kind.routing_key: kind.model for kind in KINDS}
    assert {job.routing_key for job in found.jobs} == set(models)
    for job in found.jobs:
        model = models[job.routing_key].model_validate(job.body)
        assert model.model_dump(mode="json") == job.body
    assert len({row["pattern"] for row in found.progress}) >= 4
    assert len([each for each in found.held if each.viewer == "one"]) == len(found.progress)


def _good(found: Evidence) -> int:
    """The place of an outbox row whose batch was ingested."""
    inbox = {row["client_session_uuid"] for row in found.inbox}
    return next(n for n, row in enumerate(found.recorded) if row.client_session_uuid in inbox)


def _bad(found: Evidence) -> int:
    inbox = {row["client_session_uuid"] for row in found.inbox}
    return next(n for n, row in enumerate(found.recorded) if row.client_session_uuid not in inbox)


def _replace(rows: list[Any], place: int, **values: Any) -> None:
    rows[place] = rows[place]._replace(**values)


def _lose_outbox_row(found: Evidence) -> None:
    del found.recorded[_good(found)]


def _double_outbox_row(found: Evidence) -> None:
    found.recorded.append(found.recorded[0])


def _invent_outbox_row(found: Evidence) -> None:
    del found.played[0]


def _change_outbox_body(found: Evidence) -> None:
    found.recorded[_good(found)].body["attempts"][0]["is_unsure"] = 7


def _unsettle(found: Evidence) -> None:
    _replace(found.recorded, _good(found), state="confirmed", result=None)


def _tell_viewer_otherwise(found: Evidence) -> None:
    found.recorded[_good(found)].result["sessions"][0]["correct"] += 1  # type: ignore[index]


def _tell_viewer_rejected(found: Evidence) -> None:
    found.recorded[_good(found)].result["status"] = "rejected"  # type: ignore[index]


def _tell_viewer_ingested(found: Evidence) -> None:
    found.recorded[_bad(found)].result["status"] = "ingested"  # type: ignore[index]


def _tell_viewer_other_reason(found: Evidence) -> None:
    found.recorded[_bad(found)].result["reason"] = "malformed"  # type: ignore[index]


def _lose_batch(found: Evidence) -> None:
    uuid = found.inbox[0]["client_session_uuid"]
    for rows in (found.inbox, found.sessions, found.attempts):
        rows[:] = [row for row in rows if row["client_session_uuid"] != uuid]


def _double_inbox_row(found: Evidence) -> None:
    found.inbox.append(dict(found.inbox[3]))


def _invent_inbox_row(found: Evidence) -> None:
    found.inbox.append({**found.inbox[0], "client_session_uuid": uuid4()})


def _change_digest(found: Evidence) -> None:
    found.inbox[0]["content_digest"] = bytes(32)


def _change_outbox_digest(found: Evidence) -> None:
    _replace(found.recorded, _good(found), digest=bytes(32))


def _change_principal(found: Evidence) -> None:
    found.inbox[0]["user_id"] += 1


def _forget_receipt(found: Evidence) -> None:
    found.inbox[0]["summary"] = None


def _change_skipped(found: Evidence) -> None:
    row = next(row for row in found.inbox if row["summary"]["skipped"])
    row["summary"]["skipped"][0]["reason"] = "withdrawn?"


def _change_summary(found: Evidence) -> None:
    found.inbox[5]["summary"]["sessions"][0]["recovered"] += 1


def _lose_session_of_summary(found: Evidence) -> None:
    found.inbox[5]["summary"]["sessions"].pop()


def _receive_later(found: Evidence) -> None:
    uuid = next(row["client_session_uuid"] for row in found.attempts if not row["answered_at_sent"])
    row = next(row for row in found.inbox if row["client_session_uuid"] == uuid)
    row["received_at"] += timedelta(microseconds=1)


def _lose_session(found: Evidence) -> None:
    del found.sessions[0]


def _double_session(found: Evidence) -> None:
    found.sessions.append(dict(found.sessions[0]))


def _change_session_count(found: Evidence) -> None:
    found.sessions[0]["wrong_count"] += 1


def _lose_attempt(found: Evidence) -> None:
    del found.attempts[9]


def _double_attempt(found: Evidence) -> None:
    found.attempts.append(dict(found.attempts[9]))


def _invent_attempt(found: Evidence) -> None:
    found.attempts.append({**found.attempts[9], "position": 900})


def _move_attempt(found: Evidence) -> None:
    found.attempts[9]["quiz_session_id"] = uuid4()


def _change_outcome(found: Evidence) -> None:
    found.attempts[9]["outcome"] = "lucky"


def _change_time(found: Evidence) -> None:
    found.attempts[9]["answered_at"] += timedelta(seconds=1)


def _lose_progress(found: Evidence) -> None:
    del found.progress[0]


def _double_progress(found: Evidence) -> None:
    found.progress.append(dict(found.progress[0]))


def _invent_progress(found: Evidence) -> None:
    found.progress.append({**found.progress[0], "study_question_id": 0})


def _change_scheduler(found: Evidence) -> None:
    found.progress[0]["scheduler"] = "another"


def _progress(name: str, change: Any) -> Callable[[Evidence], None]:
    def tamper(found: Evidence) -> None:
        found.progress[1][name] = change(found.progress[1][name])

    tamper.__name__ = f"_progress_{name}"
    return tamper


def _held(name: str, change: Any) -> Callable[[Evidence], None]:
    def tamper(found: Evidence) -> None:
        found.held[1].row[name] = change(found.held[1].row[name])

    tamper.__name__ = f"_held_{name}"
    return tamper


def _lose_held(found: Evidence) -> None:
    del found.held[1]


def _hold_without_progress(found: Evidence) -> None:
    found.held.append(found.held[1]._replace(question=0))


def _hold_what_a_result_told(found: Evidence) -> None:
    found.held.append(found.held[1]._replace(question="q-1"))


def _hold_without_a_grant(found: Evidence) -> None:
    found.held.append(found.held[1]._replace(viewer="two"))


def _lose_result(found: Evidence) -> None:
    uuid = str(found.inbox[0]["client_session_uuid"])
    found.told = [
        told
        for told in found.told
        if not (told.body["client_session_uuid"] == uuid and told.body["status"] == "ingested")
    ]


def _double_result(found: Evidence) -> None:
    told = next(told for told in found.told if told.body["status"] == "ingested")
    found.told.append(told._replace(message_id=str(uuid4())))


def _change_repeated_result(found: Evidence) -> None:
    told = found.told[0]
    found.told.append(told._replace(body={**told.body, "received_at": "another"}))


def _refuse_on_the_wire(found: Evidence) -> None:
    told = next(told for told in found.told if told.body["status"] == "ingested")
    told.body.update(status="rejected", reason="malformed")


def _tell_of_nothing(found: Evidence) -> None:
    found.told[0].body["client_session_uuid"] = str(uuid4())


def _lose_job(found: Evidence) -> None:
    job = next(job for job in found.jobs if job.routing_key == "explanation.requested")
    found.jobs.remove(job)


def _lose_review(found: Evidence) -> None:
    job = next(job for job in found.jobs if job.routing_key == "review.requested")
    found.jobs.remove(job)


def _double_job(found: Evidence) -> None:
    found.jobs.append(found.jobs[0]._replace(message_id=str(uuid4())))


def _change_repeated_job(found: Evidence) -> None:
    job = found.jobs[0]
    found.jobs.append(job._replace(body={**job.body, "user_id": 9}))


def _ask_for_other_review(found: Evidence) -> None:
    job = next(job for job in found.jobs if job.routing_key == "review.requested")
    job.body["questions"][0]["pattern"] = "mastered"


def _unpark(found: Evidence) -> None:
    found.parked = [each for each in found.parked if each.reason != "mixed_principals"]


def _park_for_another_reason(found: Evidence) -> None:
    _replace(found.parked, 0, reason="malformed")


def _park_unknown(found: Evidence) -> None:
    found.parked.append(Parked(uuid4(), None, "malformed"))


def _lose_strange(found: Evidence) -> None:
    found.parked = [each for each in found.parked if each.mark is None]


def _park_echo(found: Evidence) -> None:
    found.parked.append(Parked(None, "strange-2", "uuid_reused"))


def _ignore_echo(found: Evidence) -> None:
    found.told = [told for told in found.told if told.routing_key != "result.stranger"]
    uuid = str(found.strange[1].client_session_uuid)
    found.told = [
        told
        for told in found.told
        if told.body["client_session_uuid"] != uuid or told.body["status"] == "ingested"
    ]


def _park_unsent(found: Evidence) -> None:
    found.parked.append(Parked(None, "strange-9", "malformed"))


def _keep_twice(found: Evidence) -> None:
    twice = Parked(None, None, "malformed", b"one message")
    found.parked += [twice, twice]


def _leave_waiting(found: Evidence) -> None:
    found.waiting["the queue study.attempts"] = 1


def _miss_a_batch(found: Evidence) -> None:
    missing = [str(found.recorded[0].client_session_uuid)]
    found.checked = [Checked("result.one", {"has": [], "missing": missing})]


def _show_nothing(found: Evidence) -> None:
    found.looks = [Look("replica away", "study-ingest status", "commits_hang", ["queue_grows"])]


_TAMPERINGS: tuple[tuple[Callable[[Evidence], None], str], ...] = (
    (_lose_outbox_row, "lost"),
    (_double_outbox_row, "doubled"),
    (_invent_outbox_row, "wrong"),
    (_change_outbox_body, "wrong"),
    (_unsettle, "lost"),
    (_tell_viewer_otherwise, "wrong"),
    (_tell_viewer_rejected, "wrong"),
    (_tell_viewer_ingested, "wrong"),
    (_tell_viewer_other_reason, "wrong"),
    (_lose_batch, "lost"),
    (_double_inbox_row, "doubled"),
    (_invent_inbox_row, "wrong"),
    (_change_digest, "wrong"),
    (_change_outbox_digest, "wrong"),
    (_change_principal, "wrong"),
    (_forget_receipt, "wrong"),
    (_change_skipped, "wrong"),
    (_change_summary, "wrong"),
    (_lose_session_of_summary, "wrong"),
    (_receive_later, "wrong"),
    (_lose_session, "lost"),
    (_double_session, "doubled"),
    (_change_session_count, "wrong"),
    (_lose_attempt, "lost"),
    (_double_attempt, "doubled"),
    (_invent_attempt, "doubled"),
    (_move_attempt, "wrong"),
    (_change_outcome, "wrong"),
    (_change_time, "wrong"),
    (_lose_progress, "lost"),
    (_double_progress, "doubled"),
    (_invent_progress, "wrong"),
    (_change_scheduler, "wrong"),
    *(
        (_progress(name, lambda value: value + 1), "wrong")
        for name in (
            "attempts_count",
            "correct_count",
            "wrong_count",
            "unsure_count",
            "correct_run",
            "best_run",
            "lapse_count",
            "study_topic_id",
        )
    ),
    *(
        (_progress(name, lambda value: value + timedelta(days=1)), "wrong")
        for name in ("last_answered_at", "due_at")
    ),
    *((_progress(n, lambda value: value * 1.000001), "wrong") for n in ("stability", "difficulty")),
    *((_progress(n, lambda value: f"{value}?"), "wrong") for n in ("pattern", "last_outcome")),
    (_progress("explanation_requested", lambda value: not value), "wrong"),
    (_progress("first_correct_at", lambda value: "never"), "wrong"),
    (_lose_held, "lost"),
    (_hold_without_progress, "wrong"),
    (_hold_what_a_result_told, "wrong"),
    (_hold_without_a_grant, "wrong"),
    *((_held(name, lambda value: value + 1), "wrong") for name in ("version", "unsure")),
    *((_held(name, lambda value: f"{value} "), "wrong") for name in ("due_at", "pub_ids")),
    (_lose_result, "lost"),
    (_double_result, "doubled"),
    (_change_repeated_result, "doubled"),
    (_refuse_on_the_wire, "wrong"),
    (_tell_of_nothing, "wrong"),
    (_lose_job, "lost"),
    (_lose_review, "lost"),
    (_double_job, "doubled"),
    (_change_repeated_job, "doubled"),
    (_ask_for_other_review, "wrong"),
    (_unpark, "lost"),
    (_park_for_another_reason, "wrong"),
    (_park_unknown, "wrong"),
    (_lose_strange, "wrong"),
    (_park_echo, "wrong"),
    (_ignore_echo, "lost"),
    (_park_unsent, "wrong"),
    (_miss_a_batch, "lost"),
    (_show_nothing, "wrong"),
    (_leave_waiting, "lost"),
)


@pytest.mark.parametrize(
    ("tamper", "kind"), _TAMPERINGS, ids=[each.__name__.strip("_") for each, _ in _TAMPERINGS]
)
def test_the_checker_finds_each_tampering(
    found: Evidence, tamper: Callable[[Evidence], None], kind: str
) -> None:
    tamper(found)
    assert kind in {violation.kind for violation in check(found)}


def test_every_rule_can_fail(story: Evidence) -> None:
    fails = {
        checker.outboxes_hold_what_was_played: _invent_outbox_row,
        checker.every_batch_came_to_its_end: _unsettle,
        checker.inbox_holds_each_batch_once: _double_inbox_row,
        checker.summaries_are_right: _change_summary,
        checker.sessions_and_attempts_are_the_batches: _lose_session,
        checker.progress_is_the_fold: _lose_progress,
        checker.devices_hold_the_stored_progress: _hold_without_a_grant,
        checker.results_on_the_wire_are_right: _double_result,
        checker.followups_are_right: _lose_job,
        checker.strangers_were_answered: _park_unsent,
        checker.letters_are_kept_once: _keep_twice,
        checker.nothing_waits: _leave_waiting,
        checker.viewers_missed_nothing: _miss_a_batch,
        checker.operators_were_shown_what_happened: _show_nothing,
    }
    assert {*fails} == {*checker.RULES}
    for rule, tamper in fails.items():
        found = _copy(story)
        tamper(found)
        assert any(rule(checker.judge(found))), rule.__name__


@pytest.mark.parametrize("reason", ["retries_exhausted", "delivery_limit"])
def test_a_history_in_which_every_good_batch_was_given_up_breaks_the_law(
    found: Evidence, reason: str
) -> None:
    good = {row["client_session_uuid"] for row in found.inbox}
    for rows in (found.inbox, found.sessions, found.attempts, found.progress):
        rows.clear()
    found.jobs, found.held = [], []
    found.strange = [each for each in found.strange if each.client_session_uuid is None]
    found.told = [told for told in found.told if told.body["status"] == "rejected"]
    for place, recorded in enumerate(found.recorded):
        if (uuid := recorded.client_session_uuid) in good:
            result = {"client_session_uuid": str(uuid), "status": "rejected", "reason": reason}
            _replace(found.recorded, place, result=result)
            found.parked.append(Parked(uuid, None, reason))
            found.told.append(Told(str(uuid4()), f"result.{recorded.viewer}", result))
    violations = check(found)
    assert len([each for each in violations if "was given up" in each.sentence]) == len(good) > 40
    assert {each.kind for each in violations} == {"wrong"}


def _give_up(found: Evidence) -> None:
    """It is ingested as well, as if it had been replayed, which nobody does in a run."""
    uuid = found.recorded[_good(found)].client_session_uuid
    found.parked.append(Parked(uuid, None, "retries_exhausted"))


def _give_up_bad(found: Evidence) -> None:
    uuid = found.recorded[_bad(found)].client_session_uuid
    found.parked.append(Parked(uuid, None, "delivery_limit"))


def _give_up_echo(found: Evidence) -> None:
    found.parked.append(Parked(None, "strange-2", "retries_exhausted"))


def _give_up_strange(found: Evidence) -> None:
    found.parked.append(Parked(None, "strange-1", "delivery_limit"))


def _tell_of_giving_up(found: Evidence) -> None:
    told = next(told for told in found.told if told.body["status"] == "ingested")
    told.body.update(status="rejected", reason="retries_exhausted")


@pytest.mark.parametrize(
    "tamper", [_give_up, _give_up_bad, _give_up_echo, _give_up_strange, _tell_of_giving_up]
)
def test_nothing_is_given_up_because_of_a_fault(
    found: Evidence, tamper: Callable[[Evidence], None]
) -> None:
    tamper(found)
    assert "wrong" in {violation.kind for violation in check(found)}


def test_only_what_a_worker_can_not_receive_may_be_returned_too_often(found: Evidence) -> None:
    found.strange.append(Strange("amqp10-1", None, "malformed", or_else="delivery_limit"))
    found.parked.append(Parked(None, "amqp10-1", "delivery_limit"))
    assert check(found) == []
    found.parked.append(Parked(None, "amqp10-1", "retries_exhausted"))
    assert [each.kind for each in check(found)] == ["wrong"]


def _take_over(found: Evidence) -> None:
    """Another server took over in the middle of the results, and each viewer asked it."""
    found.told = [told._replace(sent=float(100 + n)) for n, told in enumerate(found.told)]
    found.promoted = [90.5, 100.5 + len(found.told) // 2]
    found.checked = [
        Checked(f"result.{viewer}", {"has": [], "missing": []}, 100.0 + len(found.told))
        for viewer in _VIEWERS
    ]


def test_after_a_failover_each_viewer_asks_what_the_server_has(found: Evidence) -> None:
    _take_over(found)
    assert check(found) == []
    del found.checked[0]
    assert [str(each) for each in check(found)] == [
        "wrong: Another server took over, and one did not ask it what it has."
    ]


def test_a_failover_after_which_nobody_asked_breaks_the_law(found: Evidence) -> None:
    _take_over(found)
    found.checked = []
    assert "wrong: Another server took over, and no viewer asked it what it has." in [
        str(each) for each in check(found)
    ]


def test_who_asked_an_earlier_server_has_not_asked_the_last_one(found: Evidence) -> None:
    _take_over(found)
    found.checked = [each._replace(sent=found.promoted[0] + 2) for each in found.checked]
    assert len(check(found)) == 3


def test_a_viewer_that_no_message_has_reached_since_need_not_have_asked(found: Evidence) -> None:
    _take_over(found)
    found.told.sort(key=lambda told: told.routing_key != "result.one")
    found.told = [told._replace(sent=float(100 + n)) for n, told in enumerate(found.told)]
    found.promoted = [100.5 + sum(told.routing_key == "result.one" for told in found.told)]
    found.checked = [each for each in found.checked if each.routing_key != "result.one"]
    assert check(found) == []


def test_a_letter_that_is_kept_twice(found: Evidence) -> None:
    found.parked += [
        Parked(None, "strange-1", "malformed", b"one message"),
        Parked(None, "strange-1", "malformed", b"another"),
    ]
    assert check(found) == []
    found.parked.append(Parked(None, "strange-1", "malformed", b"another"))
    assert [each.kind for each in check(found)] == ["doubled"]
