"""Metrics of a real worker process: right after known traffic, and named by the conventions."""

import platform
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.attempt_batch import AttemptBatch
from tests import factories as make
from tests.broker_fixtures import Broker
from tests.worker_process import running
from worker import __version__ as worker_version
from worker.broker import topology
from worker.broker.management import Management
from worker.ingest.transaction import Ingest
from worker.settings import Settings
from worker.telemetry import metrics

DAY = 86_400.0


@pytest.mark.broker
async def test_known_traffic_is_measured_as_what_it_was(
    settings: Settings, broker: Broker, engine: AsyncEngine, question: make.Published
) -> None:
    now = datetime.now(UTC)
    two_days_offline = make.batch(make.right(question, now - timedelta(days=2, hours=1)))

    async def publish(batch: AttemptBatch, message_type: str = amqp.ATTEMPT_BATCH_TYPE) -> None:
        await broker.publish(
            batch.model_dump_json(), type=message_type, timestamp=now - timedelta(hours=1)
        )

    async with running(settings) as worker:
        await publish(two_days_offline)
        await publish(two_days_offline)
        await publish(make.batch(make.right("nowhere")))
        await publish(make.batch(make.right(question)), f"{amqp.ATTEMPT_BATCH_TYPE}.7")
        await publish(make.batch(make.right(question)), "study.attempt_batch.v2")
        await worker.logged("delivery.settled", disposition="postponed")
        await worker.until_metric('study_ingest_outbox_relayed_total{outcome="confirmed"}', 4)
        await worker.until_metric("study_ingest_deliveries_in_hand", 0)
        seen = await worker.metrics()
        build = f'{{python="{platform.python_version()}",version="{worker_version}"}}'
        assert seen[f"study_ingest_build_info{build}"] == 1
        _look_at_settled(seen)
        _look_at_ages(seen)
        assert seen['study_ingest_batches_by_version_total{version="1.0"}'] == 3
        assert seen['study_ingest_batches_by_version_total{version="1.7"}'] == 1
        assert seen['study_ingest_batches_by_version_total{version="newer"}'] == 1
        assert seen["study_ingest_group_size_batches_sum"] == 4
        assert 1 <= seen["study_ingest_group_size_batches_count"] <= 4
        for stage in ("read", "ingest", "settle"):
            assert seen[f'study_ingest_stage_duration_seconds_count{{stage="{stage}"}}'] >= 1
        assert seen['study_ingest_database_connections{state="in_use"}'] <= 4
        assert seen["study_ingest_database_connections_max"] == settings.lanes + 6
        assert abs(seen["study_ingest_last_progress_timestamp_seconds"] - now.timestamp()) < 60


def _look_at_settled(seen: dict[str, float]) -> None:
    settled = {
        name: value
        for name, value in seen.items()
        if name.startswith("study_ingest_deliveries_settled_total")
    }
    assert settled == {
        _settled("ingested"): 2,
        _settled("duplicate"): 1,
        _settled("rejected", "nothing_resolved"): 1,
        _settled("postponed", "unsupported_version"): 1,
    }


def _settled(disposition: str, reason: str = "") -> str:
    return f'study_ingest_deliveries_settled_total{{disposition="{disposition}",reason="{reason}"}}'


def _look_at_ages(seen: dict[str, float]) -> None:
    def age(place: str, what: str) -> float:
        return seen[f'study_ingest_batch_age_seconds_{what}{{place="{place}"}}']

    # Two were ingested: one recorded two days before it was published, one on a Monday in 2024;
    # both had been published an hour before.
    monday = datetime.now(UTC).timestamp() - make.MONDAY.timestamp()
    assert age("viewer", "sum") == pytest.approx(2 * DAY + monday - 3600, abs=120)
    assert age("broker", "sum") == pytest.approx(2 * 3600, abs=120)
    assert 0 < age("worker", "sum") < 60
    assert [age(place, "count") for place in ("viewer", "broker", "worker")] == [2, 2, 2]
    two_days = 'study_ingest_batch_age_seconds_bucket{le="%s",place="viewer"}'
    assert seen[two_days % 86400.0] == 0 and seen[two_days % 259200.0] == 1
    committed = seen["study_ingest_recorded_to_committed_seconds_sum"]
    assert committed == pytest.approx(2 * DAY + 3600 + monday, abs=120)


@pytest.mark.broker
async def test_failures_and_retries_are_counted(
    settings: Settings, broker: Broker, engine: AsyncEngine, question: make.Published
) -> None:
    # For this learner alone: what fails for everybody is the database's fault, and waited for.
    await make.execute(
        engine,
        f"ALTER TABLE study_question_attempts ADD CHECK (user_id <> {question.user_id})",
    )
    impatient = settings.model_copy(update={"retry_delays": (0.05,)})
    async with Management(impatient) as management:
        await topology.apply(management, impatient)
    async with running(impatient) as worker:
        await broker.publish(make.batch(make.right(question)).model_dump_json())
        await worker.until_metric(_settled("rejected", "retries_exhausted"), 1)
        seen = await worker.metrics()
    assert seen[_settled("deferred")] == 1
    assert seen['study_ingest_groups_failed_total{error="CheckViolationError"}'] == 2


@pytest.mark.broker
async def test_dead_letters_that_wait_are_counted_by_viewer(
    settings: Settings, engine: AsyncEngine
) -> None:
    unknown = [make.sent(make.right("nowhere"), viewer=viewer) for viewer in ("ada", "bob", "ada")]
    await Ingest(engine, settings.policy())(unknown)
    async with running(settings) as worker:
        await worker.until_metric('study_ingest_dead_letters_waiting{viewer="ada"}', 2)
        seen = await worker.metrics()
    assert seen['study_ingest_dead_letters_waiting{viewer="bob"}'] == 1
    bound = seen["study_ingest_dead_letters_per_viewer_max"]
    assert bound == settings.dead_letters_per_viewer


def test_a_viewer_without_letters_has_no_series() -> None:
    def value(viewer: str) -> float | None:
        return REGISTRY.get_sample_value("study_ingest_dead_letters_waiting", {"viewer": viewer})

    metrics.letters_waiting({"ada": 1, "": 2})
    assert (value("ada"), value("unknown")) == (1, 2)
    metrics.letters_waiting({"ada": 3, "bob": 1})
    assert (value("ada"), value("bob"), value("unknown")) == (3, 1, None)
    metrics.letters_waiting({})
    assert (value("ada"), value("bob")) == (None, None)


@pytest.mark.broker
async def test_viewers_that_have_fallen_silent_are_counted(
    settings: Settings, engine: AsyncEngine
) -> None:
    for viewer, days in (("stopped", (8, 13, 20, 27)), ("on", (1, 8, 13, 20))):
        await make.grant(engine, viewer, 1)
        await make.published_days_ago(engine, viewer, days)
    async with running(settings) as worker:
        await worker.until_metric("study_ingest_viewers_silent", 1)


@pytest.mark.broker
async def test_names_follow_the_conventions(settings: Settings) -> None:
    async with running(settings) as worker:
        exposition = await worker.exposition()
    for family in text_string_to_metric_families(exposition):
        if not family.name.startswith("study_ingest_"):
            continue
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|millis|minutes|hours|kb|mb)\b", family.name), family.name
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples), (
                family.name
            )
        else:
            assert not family.name.endswith("_total"), family.name
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_batches")), family.name


def test_unknown_values_get_no_label_of_their_own() -> None:
    versions = [(major, minor) for major in range(1, 100) for minor in range(1000)]
    assert len({metrics.version_label(version) for version in versions}) == 22


def _mine() -> Iterator[str]:
    for name, value in vars(metrics).items():
        if name.isupper() and not name.startswith("_") and hasattr(value, "describe"):
            yield name


def test_every_metric_is_set_by_somebody() -> None:
    package = Path(metrics.__file__).parents[1]
    sources = "".join(file.read_text() for file in package.rglob("*.py"))
    unset = [
        name
        for name in _mine()
        if not re.search(rf"\b{name}(\.labels\(.*\))?\.(inc|set|observe|time|info)", sources)
    ]
    assert unset == []
