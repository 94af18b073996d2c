"""`doctor` finds each known problem and says what to do about it."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import make_url

from schemas import amqp
from tests import factories as make
from tests.broker_fixtures import make_settings, until
from tests.factories import right
from tests.worker.operate.commands import invoke
from tests.worker.operate.conftest import Site
from worker.broker.inspection import Inspection
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.operate.doctor import broker, database, local, session
from worker.store.engine import transaction
from worker.store.operate import roles

pytestmark = pytest.mark.broker

Found = dict[str, list[dict[str, Any]]]


async def examined(site: Site, **variables: str) -> Found:
    """Findings by severity."""
    result = await invoke(site, "doctor", "--json", **variables)
    report = json.loads(result.stdout)
    assert result.exit_code == (0 if report["healthy"] else 1), result.exception
    found: Found = {"ok": [], "note": [], "warning": [], "danger": []}
    for finding in report["findings"]:
        found[finding["severity"]].append(finding)
        assert finding["found"].endswith(".")
        assert bool(finding["remedy"]) is (finding["severity"] != "ok")
    assert report["healthy"] is not bool(found["warning"] + found["danger"])
    return found


async def test_doctor_finds_nothing_wrong_with_a_system_set_up_as_documented(site: Site) -> None:
    found = await examined(site)
    assert found["danger"] == found["warning"] == []
    checked = {finding["check"] for each in found.values() for finding in each}
    assert checked >= {
        *("topology", "delivery limit", "dead letters", "returns", "ack timeout", "heartbeat"),
        *("rights", "schema", "indexes", "connections", "durability", "clock", "tls", "login"),
        *("alarms", "timeouts", "identity"),
    }
    plain = (await invoke(site, "doctor")).stdout
    assert "\x1b" not in plain and "ok      schema: " in plain


async def test_doctor_finds_problems_of_the_database(site: Site) -> None:
    name = make_url(site.settings.database_url.get_secret_value()).database
    await make.execute(site.engine, f"ALTER DATABASE {name} SET synchronous_commit = off")
    await make.execute(site.engine, "DROP INDEX outbox_results_idx")
    await make.execute(
        site.engine,
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = CAST('ingest_inbox_user_id_idx' AS regclass)",
    )
    said = {finding["found"] for finding in (await examined(site))["danger"]}
    assert said == {
        "PostgreSQL runs with synchronous_commit off, so a crash loses batches that were acked.",
        "Index outbox_results_idx is missing.",
        "Index ingest_inbox_user_id_idx is not valid.",
    }


@pytest.mark.parametrize(
    ("synchronous", "commit", "standbys", "severity"),
    [
        ("", "on", [], "ok"),
        ("", "on", [("spare", "async")], "note"),
        ("", "on", [(None, None)], "note"),  # as a role without rights sees it
        ("first", "on", [("first", "sync"), ("spare", "async")], "ok"),
        ("ANY 1 (*)", "remote_apply", [("first", "quorum")], "ok"),
        ("first", "on", [(None, None)], "ok"),
        ("first", "local", [("first", "sync")], "note"),
        ("first", "on", [("spare", "async")], "danger"),
        ("first", "on", [], "danger"),
        ("first", "local", [], "ok"),
    ],
)
def test_standbys_that_no_commit_waits_for_are_named_and_those_that_are_missing(
    synchronous: str,
    commit: str,
    standbys: list[tuple[str | None, str | None]],
    severity: str,
) -> None:
    found = database._replication(synchronous, standbys, commit)
    assert (found.check, found.severity) == ("replication", severity)
    assert bool(found.remedy) is (severity != "ok")


async def test_attempts_of_0_1_0_with_times_that_cannot_be_true_are_counted(site: Site) -> None:
    async def said() -> list[str]:
        found = await examined(site)
        return [each["found"] for each in found["warning"] if each["check"] == "times"]

    (question,) = await make.publish(site.engine)
    await Ingest(site.engine, Policy())([make.sent(right(question, None), right(question))])
    assert await said() == []
    await make.execute(site.engine, "UPDATE study_question_attempts SET time_was = NULL")
    (found,) = await said()
    assert found.startswith("1 attempts of 0.1.0")
    assert (await invoke(site, "rebuild")).exit_code == 0
    assert await said() == []


async def test_schedules_of_another_scheduler_are_counted_until_a_rebuild(site: Site) -> None:
    async def said() -> list[str]:
        found = await examined(site)
        return [each["found"] for each in found["warning"] if each["check"] == "schedules"]

    async def noted() -> bool:
        await make.execute(site.engine, "ANALYZE study_question_progress")
        status = json.loads((await invoke(site, "status", "--json")).stdout)
        return "other_schedules" in {each["code"] for each in status["attention"]}

    questions = await make.publish(site.engine, 4)
    await Ingest(site.engine, Policy())([make.sent(*map(right, questions))])
    assert await said() == [] and not await noted()
    old = "fsrs-6/6.3.2/e827cad83d79"
    await make.execute(
        site.engine,
        f"UPDATE study_question_progress SET scheduler = '{old}'"
        f" WHERE study_question_id IN ({questions[0].question_id}, {questions[1].question_id})",
    )
    (found,) = await said()
    assert found.startswith("2 questions have a schedule of another scheduler")
    assert await noted()
    assert (await invoke(site, "rebuild")).exit_code == 0
    assert await said() == [] and not await noted()


async def test_a_schema_that_does_not_fit_is_found(site: Site) -> None:
    await make.execute(site.engine, "DELETE FROM study_ingest_version")
    (finding,) = (await examined(site))["danger"]
    assert finding["check"] == "schema" and "`study-ingest migrate`" in finding["remedy"]


async def test_doctor_finds_problems_of_the_broker(site: Site) -> None:
    await site.broker.put_policy(
        "somebody-elses",
        pattern="^study",
        apply_to="queues",
        priority=9,
        definition={"delivery-limit": 2, "overflow": "drop-head"},
    )

    async def look() -> set[str]:
        return {finding["check"] for finding in (await examined(site))["danger"]}

    await until(look, {"topology", "delivery limit", "dead letters"}.__eq__)
    await site.broker.delete("policies", "somebody-elses")
    await site.broker.delete_queue(amqp.NEWER_QUEUE)

    async def topology_alone() -> list[dict[str, Any]]:
        return (await examined(site))["danger"]

    (finding,) = await until(topology_alone, lambda found: len(found) == 1)
    assert finding["found"] == f"Queue {amqp.NEWER_QUEUE} is missing."
    assert finding["remedy"] == "Run `study-ingest topology`."


@pytest.mark.parametrize(
    ("policy", "missing"),
    [
        ({}, "dead-letter-strategy none, overflow none"),
        ({"dead-letter-strategy": "at-least-once", "overflow": "reject-publish"}, "no dead-letter"),
        ({"dead-letter-exchange": "x", "overflow": "reject-publish"}, "dead-letter-strategy none"),
    ],
)
def test_batches_that_the_broker_would_drop_are_found(policy: dict[str, str], missing: str) -> None:
    queue = {"name": "q", "effective_policy_definition": policy}
    (finding,) = broker._dead_lettering(queue)
    assert (finding.severity, finding.check) == ("danger", "dead letters")
    assert missing in finding.found


async def test_a_worker_reads_dead_letters_and_publishes_none(site: Site) -> None:
    """It needs to read what the broker gave up on, and no right to write there."""
    name = f"test-{uuid4().hex[:12]}"
    api, rights = site.broker.api, f"permissions/{site.broker.vhost}/{name}"
    writes = "|".join(map(re.escape, broker._PUBLISHES_TO))
    assert not re.search(writes, amqp.DEAD_EXCHANGE)
    try:
        user = {"password": "x", "tags": "administrator"}
        (await api.put(f"users/{name}", json=user)).raise_for_status()
        url = urlsplit(str(api.base_url))
        login = url._replace(netloc=f"{name}:x@{url.netloc.rpartition('@')[2]}", path="")
        changed = {"management_url": SecretStr(login.geturl())}
        async with Inspection(site.settings.model_copy(update=changed)) as inspection:
            others = f"{amqp.ATTEMPTS_QUEUE}|{amqp.PROGRESS_QUEUE}"
            for reads, wrong in (
                (f"^({others}|{amqp.DEAD_QUEUE})$", []),
                (f"^({others})$", [f"may not read from {amqp.DEAD_QUEUE}."]),
            ):
                given = {"configure": "", "write": f"^({writes})$", "read": reads}
                (await api.put(rights, json=given)).raise_for_status()
                found = [
                    each for each in await broker._rights(inspection) if each.severity == "danger"
                ]
                assert [each.found.partition(" ")[2].partition(" ")[2] for each in found] == wrong
    finally:
        await api.delete(f"users/{name}")


async def test_a_server_that_is_away_is_a_finding(site: Site) -> None:
    found = await examined(
        site,
        INGEST_DATABASE_URL="postgresql://127.0.0.1:1/nowhere",
        INGEST_MANAGEMENT_URL="http://127.0.0.1:1",
    )
    assert {finding["check"] for finding in found["danger"]} == {"broker", "database"}


@pytest.mark.parametrize(
    ("changed", "check"),
    [
        ({"amqp_url": "amqp://me:x@there.example/?heartbeat=0"}, "heartbeat"),
        ({"heartbeat": 60}, "heartbeat"),
        ({"amqp_url": "amqp://guest:guest@there.example/"}, "login"),
        ({"amqp_url": "amqp://me:x@there.example/"}, "tls"),
        ({"amqp_url": "amqp://me:x@there.example/"}, "identity"),
        ({"lock_timeout": 20.0}, "timeouts"),
        ({"alone_after": 20}, "suspects"),
    ],
)
def test_doctor_finds_dangerous_settings(changed: dict[str, Any], check: str) -> None:
    settings = make_settings(**{"amqp_url": "amqp://me:x@localhost/"} | changed)
    assert check in {each.check for each in local.examine(settings) if each.severity in _BAD}


_BAD = ("warning", "danger")


def test_an_ack_timeout_below_ours_is_found() -> None:
    settings = make_settings("amqp://localhost/")
    queue = {"name": "q", "arguments": {"x-consumer-timeout": 60_000}}
    (finding,) = broker._ack_timeout(queue, settings)
    assert finding.severity == "danger" and "60 s" in finding.found


@pytest.mark.parametrize(
    ("version", "severity"),
    [
        ("3.9.29", "danger"),
        ("3.10.8", "note"),
        ("4.0.5", None),
        ("4.3.0", "warning"),
        ("4.3.3", None),
        ("4.4.0", "note"),
        ("5.0.0", "note"),
    ],
)
def test_versions(version: str, severity: str | None) -> None:
    found = [finding for finding in broker._version(version) if finding.check == "version"]
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    assert any(finding.check == "returns" for finding in broker._version(version))


@pytest.mark.parametrize(
    ("version", "severity"),
    [("14.19", "danger"), ("15.0", "ok"), ("18.4", "ok"), ("19beta1", "note")],
)
def test_versions_of_the_database(version: str, severity: str) -> None:
    found = database._version(version, int(version[:2]))
    assert (found.check, found.severity) == ("version", severity)
    assert version in found.found


def test_clocks_apart_are_found() -> None:
    now = datetime.now(UTC)
    for clock in (broker._clock, database._clock):
        (agreeing,) = clock(now, now + timedelta(seconds=0.7))
        (apart,) = clock(now, now + timedelta(seconds=9))
        assert (agreeing.severity, apart.severity) == ("ok", "warning")


@pytest.mark.parametrize(
    ("statement", "check", "severity"),
    [
        ("ALTER DATABASE {db} SET default_transaction_read_only = on", "read-only", "danger"),
        (
            "ALTER DATABASE {db} SET default_transaction_isolation = serializable",
            "isolation",
            "note",
        ),
        ("ALTER TABLE published ENABLE ROW LEVEL SECURITY", "row security", "danger"),
        ("ALTER TABLE outbox ENABLE ROW LEVEL SECURITY", "row security", "danger"),
        ("ALTER TABLE outbox ADD CONSTRAINT never CHECK (false) NOT VALID", "writes", "danger"),
    ],
)
async def test_what_a_session_would_meet_is_found(
    statement: str, check: str, severity: str, site: Site
) -> None:
    url = make_url(site.settings.database_url.get_secret_value())
    role = f"test_{uuid4().hex[:12]}"
    async with transaction(site.engine) as connection:
        await roles.ensure_worker(connection, role)
    try:
        await make.publish(site.engine)
        await make.execute(site.engine, statement.format(db=url.database))
        as_role = url.set(username=role).render_as_string(hide_password=False)
        found = await examined(site, INGEST_DATABASE_URL=as_role)
        assert check in {finding["check"] for finding in found[severity]}
    finally:
        await make.execute(site.engine, f"DROP OWNED BY {role}")
        await make.execute(site.engine, f"DROP ROLE {role}")


def test_timeouts_that_are_not_in_force_are_found() -> None:
    settings = make_settings("amqp://localhost/")
    as_set = {
        "statement_timeout": 15_000,
        "lock_timeout": 5_000,
        "idle_in_transaction_session_timeout": 30_000,
    }
    assert [each.severity for each in session._timeouts(as_set, settings)] == ["ok"]
    for changed in ({"lock_timeout": 0}, {"transaction_timeout": 10_000}):
        (finding,) = session._timeouts(as_set | changed, settings)
        assert finding.severity == "warning" and next(iter(changed)) in finding.found
    assert [e.severity for e in session._commits(2)] == ["danger"]
