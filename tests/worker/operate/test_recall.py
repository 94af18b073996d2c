"""After a backup was restored: `recall` asks all viewers, and brings back nobody who was erased."""

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.checks import Recall
from study_viewer import Attempt, AttemptBatch, Outbox, Relay, RelaySettings
from tests import factories as make
from tests.broker_fixtures import until
from tests.database_fixtures import administer
from tests.factories import Published, right, sent
from tests.whole_worker import working
from tests.worker.operate.commands import invoke
from tests.worker.operate.conftest import Site
from worker.domain.policy import Policy
from worker.errors import RecallError
from worker.ingest.transaction import Ingest
from worker.operate.recall import Erasure, read_erasures
from worker.operate.repair import verify
from worker.store.engine import make_engine

pytestmark = pytest.mark.broker

T = "2026-03-01T02:00:00Z"
ERASED, KEPT = 42, 43
QUICK = RelaySettings(
    retry_delay_min=0.02, retry_delay_max=0.1, poll_interval=0.02, check_patience=0.5
)


def test_erasures_are_read_from_their_own_file_and_from_an_export() -> None:
    first, last = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)
    lines = [
        '{"record": "export", "version": 2, "user_id": null}',
        Erasure(7, last).line,
        "",
        Erasure(7, first).line,
        '{"record": "erasure", "user_id": "-8", "erased_at": "2026-03-01T01:00:00+01:00"}',
        '{"record": "batch", "user_id": 9}',
    ]
    assert read_erasures(lines) == [Erasure(-8, first), Erasure(7, last)]


@pytest.mark.parametrize(
    "line",
    [
        *("erased", "[]", "{}", "7", '{"record": "erasure"}'),
        '{"record": "erasure", "user_id": 7, "erased_at": "2026-03-01T00:00:00"}',
        '{"record": "erasure", "user_id": 7, "erased_at": null}',
        '{"record": "erasure", "user_id": "me", "erased_at": "2026-03-01T00:00:00Z"}',
        Erasure(2**63, datetime(2026, 3, 1, tzinfo=UTC)).line,
    ],
)
def test_a_line_that_is_no_erasure_is_named(line: str) -> None:
    with pytest.raises(RecallError, match=r"^Line 2 is not an erasure"):
        read_erasures(["", line])


async def test_it_refuses_to_run_where_nothing_says_who_was_erased(
    site: Site, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("{")
    for words in (
        (),
        ("--no-erasures",),
        ("--no-erasures", "--reason", " "),
        ("--erasures", str(damaged)),
        ("--erasures", str(tmp_path / "nowhere")),
        ("--erasures", str(damaged), "--no-erasures", "--reason", "both"),
    ):
        refused = (await invoke(site, "recall", "--since", T, *words, "--yes")).exception
        assert isinstance(refused, RecallError), words
    assert await make.count(site.engine, "outbox") == 0
    assert await make.count(site.engine, "ingest_audit") == 0


async def test_every_viewer_gets_one_lasting_message(site: Site) -> None:
    channel = await site.broker.channel()
    for viewer in ("away", "bob"):  # bob was made after the backup, so that his grant is missing
        queue = await channel.declare_queue(amqp.results_queue(viewer), durable=True)
        await queue.bind(amqp.RESULTS_EXCHANGE, amqp.result_key(viewer))
    await make.grant(site.engine, "away", KEPT)
    await make.grant(site.engine, "expired", KEPT)
    words = ("recall", "--since", T, "--no-erasures", "--reason", "ada asked the team", "--json")
    dry = json.loads((await invoke(site, *words, "--dry-run")).stdout)
    assert await make.count(site.engine, "outbox") == 0
    done = json.loads((await invoke(site, *words, "--yes")).stdout)
    counts = {"viewers": 3, "without_queue": 1, "erased": 0, "known_erasures": 0}
    assert done == counts | {"since": "2026-03-01T02:00:00+00:00", "dry_run": False}
    assert dry == done | {"dry_run": True}
    async with site.working():
        for viewer in ("away", "bob"):
            found = await site.broker.take(amqp.results_queue(viewer))
            # What was being committed when the backup began is not in it.
            asked = Recall.model_validate_json(found.body).since + timedelta(hours=1)
            assert asked.isoformat() == done["since"]
            assert found.properties["type"] == amqp.RECALL_TYPE
            assert found.properties["delivery_mode"] == 2
        await until(lambda: make.count(site.engine, "outbox"), (0).__eq__)
    (audited,) = await make.rows(site.engine, "SELECT operation, reason, effect FROM ingest_audit")
    assert audited["operation"] == "recall" and audited["reason"] == "ada asked the team"
    assert audited["effect"] == {"since": done["since"], "viewers": 3, "erasures": 0}


async def test_an_erasure_is_on_file_before_it_is_committed(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "erasures.jsonl"
    for user in (7, 8):
        result = await invoke(site, "erase", "--user", str(user), "--yes", "--record", str(file))
        assert result.exit_code == 0, result.output
    assert file.stat().st_mode & 0o777 == 0o600
    listed = (await invoke(site, "erasures")).stdout
    assert read_erasures(file.read_text().splitlines()) == read_erasures(listed.splitlines())
    assert (await invoke(site, "erasures", "--since", "2099-01-01")).stdout == ""
    nowhere = str(tmp_path / "no" / "file")
    result = await invoke(site, "erase", "--user", "9", "--yes", "--record", nowhere)
    assert "user 9 was not erased" in str(result.exception)
    assert await make.count(site.engine, "ingest_erasures") == 2


async def test_who_answered_since_the_erasure_is_left_alone_with_a_way_out(
    site: Site, tmp_path: Path
) -> None:
    (question,) = await make.publish(site.engine, user_id=ERASED)
    erasure = Erasure(ERASED, datetime.now(UTC) - timedelta(minutes=1))
    await Ingest(site.engine, Policy())([sent(right(question))])
    file = tmp_path / "erasures.jsonl"
    file.write_text(erasure.line + "\n")
    words = ("recall", "--since", "1h", "--erasures", str(file), "--yes", "--json")
    refused = (await invoke(site, *words)).exception
    assert isinstance(refused, RecallError) and refused.exit_code == 2
    assert "1 batches of user 42" in refused.found and "erase --user 42" in refused.remedy
    assert await make.count(site.engine, "ingest_inbox") == 1
    await invoke(site, "erase", "--user", str(ERASED), "--yes")
    done = json.loads((await invoke(site, *words)).stdout)
    assert (done["erased"], done["known_erasures"]) == (0, 1)


# ------------------------------------------------------------------- the whole, with two phones


@asynccontextmanager
async def phone(site: Site, path: Path, name: str) -> AsyncIterator[tuple[Outbox, Relay]]:
    url = site.settings.amqp_url.get_secret_value()
    with Outbox(path / f"{name}.db") as outbox:
        async with Relay(outbox, url, name, QUICK) as relay:
            yield outbox, relay


async def answered(outbox: Outbox, relay: Relay, question: Published) -> UUID:
    """A session that the server has and that the phone knows it has."""
    now = datetime.now(UTC).isoformat()
    attempt = Attempt(question_pub_id=question.pub_id, selected_choice=1, answered_at=now)
    batch = AttemptBatch(client_session_uuid=uuid4(), attempts=(attempt,))
    with closing(sqlite3.connect(outbox.path)) as mine, mine:
        outbox.record(mine, batch)
    relay.wake()
    await relay.until_settled(batch.client_session_uuid)
    return batch.client_session_uuid


async def quiet(outbox: Outbox, relay: Relay) -> None:
    """Waits until the phone has nothing more to publish or to ask."""
    await relay.until(lambda: not outbox.unsettled() and not outbox.unchecked(1))


async def uuids(engine: AsyncEngine) -> set[UUID]:
    rows = await make.rows(
        engine, "SELECT client_session_uuid FROM ingest_inbox WHERE erased_at IS NULL"
    )
    return {row["client_session_uuid"] for row in rows}


async def test_a_restored_backup_gets_back_what_is_missing_and_nobody_who_was_erased(
    site: Site, tmp_path: Path
) -> None:
    (theirs,) = await make.publish(site.engine, user_id=ERASED)
    (mine,) = await make.publish(site.engine, user_id=KEPT)
    lost_url = site.settings.database_url.get_secret_value()
    restored = f"{make_url(lost_url).database}_restored"
    file = tmp_path / "erasures.jsonl"
    async with phone(site, tmp_path, "one") as one, phone(site, tmp_path, "two") as two:
        async with site.working():
            erased, kept = await answered(*one, theirs), await answered(*two, mine)
        await site.engine.dispose()
        backup = datetime.now(UTC).isoformat()
        await administer(f"CREATE DATABASE {restored} TEMPLATE {make_url(lost_url).database}")
        try:
            async with site.working():
                gone = await answered(*one, theirs)
                missing = {await answered(*two, mine) for _ in range(5)}
            erasing = ("erase", "--user", str(ERASED), "--yes", "--record", str(file))
            assert (await invoke(site, *erasing)).exit_code == 0
            new = Attempt(
                question_pub_id=theirs.pub_id,
                selected_choice=1,
                answered_at=datetime.now(UTC).isoformat(),
            )
            after = AttemptBatch(client_session_uuid=uuid4(), attempts=(new,))
            with closing(sqlite3.connect(one[0].path)) as phones, phones:
                one[0].record(phones, after)

            # The database is gone.
            url = make_url(lost_url).set(database=restored).render_as_string(hide_password=False)
            words = ("recall", "--since", backup, "--erasures", str(file), "--yes", "--json")
            result = await invoke(site, *words, INGEST_DATABASE_URL=url)
            assert result.exit_code == 0, result.output
            done = json.loads(result.stdout)
            assert (done["erased"], done["without_queue"]) == (1, 0)
            settings = type(site.settings).model_validate(
                site.settings.model_dump(exclude_unset=True) | {"database_url": url}
            )
            engine = make_engine(settings, connections=4, name="tests")
            try:
                async with working(settings, engine):
                    wanted = {after.client_session_uuid, kept, *missing}
                    await until(lambda: uuids(engine), lambda found: found >= wanted)
                    for each in (one, two):
                        await quiet(*each)
                    assert await uuids(engine) == wanted
                    assert two[1].status.resent == len(missing)
                for uuid in (erased, gone):
                    entry = one[0].get(uuid)
                    assert entry is not None and entry.erased
                for user in (ERASED, KEPT):
                    assert [*await verify(engine, user, Policy())] == []
            finally:
                await engine.dispose()
        finally:
            await administer(f"DROP DATABASE {restored} WITH (FORCE)")
