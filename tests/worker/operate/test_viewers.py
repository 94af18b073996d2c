"""Many viewers at once, as a sign-up service makes them, and those that stay away."""

import json
import sqlite3
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from study_viewer import Outbox, Relay, RelaySettings
from tests import factories as make
from tests.broker_fixtures import Broker, until
from tests.security.conftest import settings, viewers
from tests.whole_worker import Viewers, working
from tests.worker.operate.commands import invoke
from tests.worker.operate.conftest import Site
from tests.worker.operate.test_answers import validated
from worker.broker.accounts import Accounts
from worker.errors import TopologyError, ViewerError
from worker.operate.viewers import Access, Ensured, ensure, listed, upgrade
from worker.settings import Settings
from worker.store.audit import By

pytestmark = pytest.mark.broker

__all__ = ["settings", "viewers"]


async def ensured(
    viewers: Viewers, engine: AsyncEngine, wanted: Mapping[str, Collection[int]]
) -> list[Ensured]:
    made = ensure(viewers.accounts, engine, wanted, Access(), By("tests", ""))
    return [each async for each in made]


async def test_a_viewer_is_made_once_and_keeps_its_password_and_grants(
    viewers: Viewers, engine: AsyncEngine
) -> None:
    old, new = await viewers.add(1), viewers.name()
    first = await ensured(viewers, engine, {old.name: [2], new: [3, 4]})
    assert [(each.name, each.password is None, each.users) for each in first] == [
        (old.name, True, (2,)),
        (new, False, (3, 4)),
    ]
    again = await ensured(viewers, engine, {new: [4, 5], old.name: []})
    assert [(each.name, each.password, each.users) for each in again] == [
        (new, None, (5,)),
        (old.name, None, ()),
    ]
    users = {each.name: each.users for each in await listed(viewers.accounts, engine)}
    assert (users[old.name], users[new]) == ((1, 2), (3, 4, 5))


async def test_more_than_are_made_at_once_are_all_made(
    viewers: Viewers, engine: AsyncEngine, broker: Broker
) -> None:
    wanted = {viewers.name(): [n + 1] for n in range(60)}
    made = await ensured(viewers, engine, wanted)
    assert [each.name for each in made] == [*wanted]
    assert len({each.password for each in made}) == 60
    queues = await viewers.accounts.queue_names()
    assert {amqp.results_queue(name) for name in wanted} <= queues


async def _equipment(viewers: Viewers, broker: Broker, name: str) -> str:
    """What the broker knows of a viewer, with another name and without its password."""
    user = (await viewers.accounts.users([name]))[name]
    paths = [f"{kind}/{broker.vhost}/{name}" for kind in ("permissions", "topic-permissions")]
    for queue in (amqp.results_queue(name), amqp.progress_queue(name)):
        paths.append(f"queues/{broker.vhost}/{queue}/bindings")
    found = [(await broker.api.get(path)).raise_for_status().json() for path in paths]
    return json.dumps([user["tags"], user["limits"], *found], sort_keys=True).replace(name, "x")


async def test_one_of_many_gets_what_a_single_viewer_gets(
    viewers: Viewers, broker: Broker, engine: AsyncEngine
) -> None:
    single, one = await viewers.add(1), viewers.name()
    await ensured(viewers, engine, {one: [1]})
    wanted = await _equipment(viewers, broker, single.name)
    assert await _equipment(viewers, broker, one) == wanted
    await viewers.accounts.permit(one, configure="", write="", read="")
    await viewers.accounts.limit_user(one, {"max-channels": 1})
    await viewers.accounts.delete_queues(amqp.progress_queue(one))
    await upgrade(viewers.accounts, engine, None, By("tests", ""))
    assert await _equipment(viewers, broker, one) == wanted


async def test_a_broker_that_is_not_set_up_gets_no_viewers(
    bare_broker: Broker, engine: AsyncEngine
) -> None:
    name = f"test-{uuid4().hex[:12]}"
    async with Accounts(bare_broker.settings) as accounts:
        with pytest.raises(
            TopologyError, match=r"^Exchange study\.results is missing: run `study-"
        ):
            _ = [
                each
                async for each in ensure(accounts, engine, {name: [1]}, Access(), By("tests", ""))
            ]
        assert name not in await accounts.users()


@pytest.mark.parametrize("of_the_vhost", [True, False])
async def test_a_login_that_is_no_viewer_s_stops_all(
    viewers: Viewers, engine: AsyncEngine, of_the_vhost: bool
) -> None:
    taken, new = viewers.name(), viewers.name()
    await viewers.accounts.put_user(taken, "x", ["monitoring"])
    if of_the_vhost:
        await viewers.accounts.permit(taken, configure="", write="", read="")
    with pytest.raises(ViewerError, match=f"^The broker's user '{taken}' is no viewer"):
        await ensured(viewers, engine, {new: [1], taken: [1]})
    assert new not in await viewers.accounts.users()
    assert await make.count(engine, "viewer_grants") == 0


async def test_results_queues_are_bounded_and_expire(viewers: Viewers, broker: Broker) -> None:
    login = await viewers.add(42)
    path = f"queues/{broker.vhost}/{amqp.results_queue(login.name)}"

    async def definition() -> object:
        found = (await broker.api.get(path)).raise_for_status().json()
        return found.get("effective_policy_definition")

    assert await until(definition, bool) == {
        "expires": 90 * 24 * 60 * 60 * 1000,
        "max-length": 10_000,
        "overflow": "drop-head",
    }


async def test_a_viewer_whose_queue_has_expired_goes_on_when_it_is_ensured_again(
    viewers: Viewers, settings: Settings, engine: AsyncEngine, tmp_path: Path
) -> None:
    login = await viewers.add(42)
    (question,) = await make.publish(engine, user_id=42)
    batch = make.batch(make.right(question))
    await viewers.accounts.delete_queues(amqp.results_queue(login.name))
    with Outbox(tmp_path / "outbox.sqlite") as outbox:
        with closing(sqlite3.connect(outbox.path)) as local, local:
            outbox.record(local, batch)  # type: ignore[arg-type]  # the same wire, copied into the library
        quick = RelaySettings(declare_results_queue=False, retry_delay_max=0.5)
        relay = Relay(outbox, login.url, login.name, quick)

        async def problem() -> str | None:
            return relay.status.problem

        async with working(settings, engine), relay:
            assert "no queue 'study.results." in str(await until(problem, bool))
            await ensured(viewers, engine, {login.name: [42]})
            entry = await relay.until_settled(batch.client_session_uuid)
    assert entry.result is not None and entry.result.status == "ingested"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ({"viewer": "a.b", "user_id": 1}, "Line 2: viewer is 'a.b' (a viewer's name has 1 to 64"),
        ({"viewer": "", "user_id": 1}, "Line 2: viewer is ''"),
        ({"viewer": "x", "user_id": 0}, "Line 2: user_id is 0"),
        ({"viewer": "x", "user": 1}, "Line 2 has the unknown field 'user'"),
        ({"user_id": 1}, "Line 2: viewer is"),
    ],
)
async def test_a_line_that_is_not_valid_stops_all(
    site: Site, tmp_path: Path, line: dict[str, object], found: str
) -> None:
    file = tmp_path / "viewers.jsonl"
    file.write_text("\n".join(map(json.dumps, ({"viewer": "never-made", "user_id": 1}, line))))
    result = await invoke(site, "viewer", "import", str(file))
    assert str(result.exception).startswith(found), result.exception
    assert await make.count(site.engine, "viewer_grants") == 0


@pytest.fixture
async def name(site: Site) -> AsyncIterator[str]:
    """A name for a viewer at the site, which goes with the test."""
    found = f"test-{uuid4().hex[:12]}"
    yield found
    async with Accounts(site.settings) as accounts:
        await accounts.delete_user(found)


async def test_the_command_prints_each_viewer(site: Site, name: str, tmp_path: Path) -> None:
    file = tmp_path / "viewers.csv"
    file.write_text(f"viewer,user_id\n{name},7\n{name},8\n")
    first = await invoke(site, "viewer", "import", str(file))
    assert first.stdout.startswith(f"{name} is new, with the password ")
    assert first.stdout.endswith("; new grants: 7, 8\n")
    again = await invoke(site, "viewer", "import", str(file), "--json")
    assert validated("viewer import", again.stdout) == [
        {"viewer": name, "password": None, "granted": []}
    ]
    audit = await make.rows(site.engine, "SELECT operation, effect FROM ingest_audit")
    assert audit == [{"operation": "viewer import", "effect": {"made": 1, "grants": 2}}]
