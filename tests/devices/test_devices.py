"""Devices are processes that share nothing but the servers: in the end, each file says what the
server has stored.
"""

import json
import random
import sqlite3
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from demo import devices
from demo.devices import Device
from schemas.attempt_batch import Attempt
from study_viewer import AttemptBatch
from tests import factories
from tests.factories import Published
from tests.whole_worker import Viewers, working
from worker.domain.policy import Policy
from worker.operate.erase import erase, survey
from worker.operate.rescore import rescore
from worker.operate.void import void
from worker.settings import Settings
from worker.store.audit import By

DAY = timedelta(days=1)
BEGIN = datetime.now(UTC) - 60 * DAY
BY = By("tests", "devices")


async def begun(
    stack: AsyncExitStack, viewers: Viewers, folder: Path, *users: int
) -> tuple[Device, str]:
    """A device of these users, with a login and a file of its own; and its name."""
    login = await viewers.add(*users)
    path = folder / f"{login.name}.sqlite"
    several = users if len(users) > 1 else ()
    device = await stack.enter_async_context(devices.running(path, login.url, login.name, several))
    return device, login.name


async def agree(engine: AsyncEngine, owned: Sequence[tuple[Device, Sequence[int]]]) -> None:
    """Every device asks and ends. Then each file has exactly what is stored."""
    for device, _ in owned:
        await device.settled()
    for device, _ in owned:
        await device.current()
        await device.end()
    for device, users in owned:
        for user in users:
            stored = await devices.due_dates(engine, user)
            assert devices.wrong(device.path, user, stored) == 0
        with closing(sqlite3.connect(device.path)) as connection:
            found = connection.execute("SELECT DISTINCT user_id FROM study_progress").fetchall()
        assert {row[0] for row in found} <= set(users)


def recorded(*attempts: Attempt) -> AttemptBatch:
    """A session in the library's own type."""
    return AttemptBatch.model_validate_json(factories.batch(*attempts).model_dump_json())


def some(rng: random.Random, questions: Sequence[Published], day: int) -> AttemptBatch:
    asked = rng.sample(list(questions), 3)
    at = BEGIN + day * DAY
    return recorded(
        *(
            factories.right(each, at) if rng.random() < 0.7 else factories.wrong(each, at)
            for each in asked
        )
    )


@pytest.mark.parametrize("count", [2, 4])
async def test_devices_of_one_learner_agree_whatever_happened(
    engine: AsyncEngine, settings: Settings, viewers: Viewers, tmp_path: Path, count: int
) -> None:
    """Late batches, a corrected key, a voided session and an erasure in between."""
    rng = random.Random(count)
    questions = await factories.publish(engine, 8, user_id=42)
    async with working(settings, engine), AsyncExitStack() as stack:
        owned = [(await begun(stack, viewers, tmp_path, 42))[0] for _ in range(count)]
        sent = []
        for day in rng.sample(range(40), 12):
            sent.append(some(rng, questions, day))
            await rng.choice(owned).record(sent[-1])
        for device in owned:
            await device.settled()
        await rescore(engine, questions[0].question_id, factories.WRONG, Policy(), BY)
        await void(engine, sent[3].client_session_uuid, Policy(), BY)
        await owned[0].record(some(rng, questions, 50))
        await owned[0].settled()
        await erase(engine, 42, await survey(engine, 42, lambda *_: None), BY)
        await owned[1].record(recorded(factories.right(questions[1], datetime.now(UTC))))
        await agree(engine, [(device, [42]) for device in owned])
    assert list(await devices.due_dates(engine, 42)) == [questions[1].pub_id]


async def test_two_users_on_one_device_and_each_on_a_device_alone(
    engine: AsyncEngine, settings: Settings, viewers: Viewers, tmp_path: Path
) -> None:
    mine = await factories.publish(engine, 5, user_id=42)
    theirs = await factories.publish(engine, 5, user_id=43)
    rng = random.Random(7)
    async with working(settings, engine), AsyncExitStack() as stack:
        tablet, _ = await begun(stack, viewers, tmp_path, 42, 43)
        phone, _ = await begun(stack, viewers, tmp_path, 42)
        other, _ = await begun(stack, viewers, tmp_path, 43)
        for day in range(6):
            await tablet.record(some(rng, mine if day % 2 else theirs, day))
            await phone.record(some(rng, mine, day))
            await other.record(some(rng, theirs, 20 - day))
        await agree(engine, [(tablet, [42, 43]), (phone, [42]), (other, [43])])


async def test_a_wrong_date_in_a_file_is_reported(
    engine: AsyncEngine, settings: Settings, viewers: Viewers, tmp_path: Path
) -> None:
    questions = await factories.publish(engine, 4, user_id=42)
    async with working(settings, engine), AsyncExitStack() as stack:
        device, _ = await begun(stack, viewers, tmp_path, 42)
        await device.record(recorded(*(factories.right(each, BEGIN) for each in questions)))
        await agree(engine, [(device, [42])])
    stored = await devices.due_dates(engine, 42)
    assert len(stored) == 4
    with closing(sqlite3.connect(device.path)) as connection, connection:
        rows = connection.execute("SELECT question_id, due_at FROM study_progress").fetchall()
        later = datetime.fromisoformat(rows[0][1]) + timedelta(microseconds=1)
        connection.execute(
            "UPDATE study_progress SET due_at = ? WHERE question_id = ?",
            (later.isoformat(timespec="microseconds"), rows[0][0]),
        )
        connection.execute("DELETE FROM study_progress WHERE question_id = ?", (rows[1][0],))
        connection.execute(
            "UPDATE study_progress SET pub_ids = ? WHERE question_id = ?",
            (json.dumps(["nobody's"]), rows[2][0]),
        )
    # The date, the question that is gone, and the one that is missing and found under another id.
    assert devices.wrong(device.path, 42, stored) == 4
