"""What `status` names for each state of the servers, and what it does not name beside it."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from inspect import getsource
from pathlib import Path
from typing import Any

import pytest

from schemas import amqp
from schemas.followups import KINDS
from worker.errors import BrokerAway, DatabaseAway, SchemaError
from worker.operate.status import attention
from worker.operate.status.attention import of_error, of_servers
from worker.operate.status.facts import BrokerStatus, DatabaseStatus, QueueStatus
from worker.store.operate.dead import Overview
from worker.store.outbox import Backlog, KindBacklog
from worker.store.pause import Pause

JOBS = [amqp.followups_queue(kind.routing_key) for kind in KINDS]
RETRY = f"{amqp.RETRY_QUEUE_PREFIX}1000"
EXPECTED = [amqp.ATTEMPTS_QUEUE, amqp.DEAD_QUEUE, amqp.NEWER_QUEUE, RETRY, *JOBS]
WELL = BrokerStatus(
    "3.10.8", tuple(QueueStatus(name, 0, 0, 1, 0.0, 10.0) for name in EXPECTED), frozenset("v")
)
PARTITION = QueueStatus(amqp.partition_queue(2), 0, 0, 1, 0.0, 10.0)
SOUND = DatabaseStatus(
    "1", "1", None, Backlog(0, 0.0, 0.0), Overview({}, None, 0), 0, granted=frozenset("v")
)
BOUND = 1_000
PAUSE = Pause(datetime(2026, 3, 1, tzinfo=UTC), "ada", "moving")


def broker(name: str = "", **changed: Any) -> BrokerStatus:
    """One whose queue of this name differs."""
    queues = [replace(each, **changed) if each.name == name else each for each in WELL.queues]
    return replace(WELL, queues=tuple(queues))


def told(
    broker: BrokerStatus | None = WELL,
    database: DatabaseStatus | None = SOUND,
    enabled: bool = True,
) -> dict[str, str]:
    """The severity of each item, by code."""
    found = of_servers(broker, database, expected=EXPECTED, enabled=enabled, max_followups=BOUND)
    for each in found:
        assert each.found.endswith(".") and each.remedy.endswith(".")
        assert each.found[0] == each.found[0].upper()
    assert len({each.code for each in found}) == len(found)
    order = ["danger", "warning", "note"]
    assert [*found] == sorted(found, key=lambda each: order.index(each.severity))
    return {each.code: each.severity for each in found}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "queues_missing": ({"broker": replace(WELL, queues=WELL.queues[:1])}, "danger"),
    "no_consumer": ({"broker": broker(amqp.ATTEMPTS_QUEUE, consumers=0, ready=5)}, "danger"),
    "backlog": ({"broker": broker(amqp.ATTEMPTS_QUEUE, ready=3_001)}, "warning"),
    "uncollected": ({"broker": broker(amqp.DEAD_QUEUE, ready=1)}, "warning"),
    "retrying": ({"broker": broker(RETRY, ready=1)}, "note"),
    "newer_version": ({"broker": broker(amqp.NEWER_QUEUE, ready=1)}, "warning"),
    "followups_unconsumed": ({"broker": broker(JOBS[0], ready=670, consumers=0)}, "warning"),
    "viewer_without_queue": ({"broker": replace(WELL, listening=frozenset())}, "note"),
    "viewer_without_progress": ({"broker": replace(WELL, older=frozenset("v"))}, "note"),
    "viewer_without_grant": ({"database": replace(SOUND, granted=frozenset())}, "note"),
    "viewer_silent": ({"database": replace(SOUND, silent=("v",))}, "note"),
    "schema": ({"database": DatabaseStatus("0", "1", None, None, None, 0)}, "danger"),
    "dead_letters": ({"database": replace(SOUND, dead=Overview({"x": 1}, None, 0))}, "warning"),
    "paused": ({"database": replace(SOUND, pause=PAUSE)}, "warning"),
    "commits_hang": ({"database": replace(SOUND, hanging_commits=1)}, "danger"),
    "no_writes": ({"database": replace(SOUND, refusal="The disk is full.")}, "danger"),
    "outbox_lag": ({"database": replace(SOUND, outbox=Backlog(1, 61.0, 61.0))}, "warning"),
    "followups_full": (
        {
            "broker": broker(JOBS[0], ready=BOUND - 1, unacknowledged=1),
            "database": replace(
                SOUND,
                outbox=Backlog(3, 61.0, 0.0),
                jobs=(KindBacklog(KINDS[0].routing_key, 3, PAUSE.paused_at),),
            ),
        },
        "warning",
    ),
    "partitions_differ": ({"broker": replace(WELL, partitions=4)}, "note"),
    "old_partitions": ({"broker": replace(WELL, queues=(*WELL.queues, PARTITION))}, "note"),
    "other_schedules": ({"database": replace(SOUND, other_schedules=0.1)}, "note"),
    "disabled": ({"enabled": False}, "warning"),
}


def test_all_is_well() -> None:
    assert told() == {}


@pytest.mark.parametrize("code", CASES)
def test_each_state_is_named_by_its_code_alone(code: str) -> None:
    given, severity = CASES[code]
    found = told(**given)
    assert found.pop(code) == severity
    assert found == {}


def test_every_code_is_tried_here() -> None:
    codes = set(re.findall(r'Attention\(\s*"(\w+)"', getsource(attention)))
    assert codes == set(CASES)


def test_the_page_for_operators_has_every_code_with_its_severity() -> None:
    page = (Path(__file__).parents[3] / "docs" / "operators.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (danger|warning|note) \|", page, re.MULTILINE)
    listed = {code: severity for codes, severity in rows for code in re.findall(r"\w+", codes)}
    of_errors = dict.fromkeys(("database_away", "broker_away", "not_set_up"), "danger")
    assert listed == {code: severity for code, (_, severity) in CASES.items()} | of_errors


@pytest.mark.parametrize(
    "why",
    [
        {"database": None},
        {"database": replace(SOUND, pause=PAUSE)},
        {"database": replace(SOUND, refusal="The disk is full.")},
        {"enabled": False},
    ],
    ids=["database away", "paused", "no writes", "disabled"],
)
@pytest.mark.parametrize("ready", [0, 9_000])
def test_where_ingest_stands_still_nobody_is_told_to_start_a_worker(
    why: dict[str, Any], ready: int
) -> None:
    nobody = broker(amqp.ATTEMPTS_QUEUE, consumers=0, ready=ready)
    somebody = broker(amqp.ATTEMPTS_QUEUE, consumers=1, ready=ready)
    for each in (nobody, somebody):
        assert not {"no_consumer", "backlog"} & told(each, **why).keys()


def test_a_backlog_that_is_worked_off_soon_or_at_an_unknown_rate_is_none() -> None:
    for changed in ({"ready": 2_999}, {"ready": 9_000, "acknowledged_per_second": None}):
        assert told(broker(amqp.ATTEMPTS_QUEUE, **changed)) == {}


def test_a_partition_that_nobody_consumes_is_named_if_batches_wait_in_it() -> None:
    def of(**changed: Any) -> dict[str, str]:
        queues = (*WELL.queues, replace(PARTITION, **changed))
        found = of_servers(
            replace(WELL, queues=queues, partitions=2),
            SOUND,
            expected=EXPECTED,
            enabled=True,
            max_followups=BOUND,
            partitions=2,
        )
        return {each.code: each.found for each in found}

    assert of(consumers=0) == {}  # it may be passing from one worker to another
    assert of(consumers=0, ready=3) == {
        "no_consumer": f"Nobody consumes {PARTITION.name}, where 3 batches wait."
    }
    # Two queues are worked off at twenty a second.
    assert of(ready=5_000) == {}
    assert of(ready=6_001).keys() == {"backlog"}


def test_all_missing_queues_and_at_most_five_viewers_are_named() -> None:
    missing, *_ = of_servers(
        replace(WELL, queues=()), SOUND, expected=EXPECTED, enabled=True, max_followups=BOUND
    )
    assert missing.found == f"{len(EXPECTED)} queues are missing: {', '.join(sorted(EXPECTED))}."
    many = replace(SOUND, granted=frozenset("abcdefgv"))
    (deaf,) = of_servers(WELL, many, expected=EXPECTED, enabled=True, max_followups=BOUND)
    assert deaf.found.endswith("a, b, c, d, e and 2 more.")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DatabaseAway("The database is away"), "database_away"),
        (BrokerAway("The broker is away"), "broker_away"),
        (SchemaError("The schema is older", "run `migrate`."), "not_set_up"),
    ],
)
def test_an_error_is_an_item_of_the_same_form(error: Any, code: str) -> None:
    item = of_error(error)
    assert (item.code, item.severity) == (code, "danger")
    assert item.found.endswith(".") and item.remedy[0].isupper()
