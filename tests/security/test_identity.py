"""What a viewer's login can do and can't do, on a real broker with a real worker."""

import json
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import aio_pika
import httpx
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPError, ChannelClosed
from aiormq.exceptions import ProbableAuthenticationError
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.followups import EXPLANATION
from schemas.words import RejectReason
from study_viewer import Outbox, Relay, RelaySettings, Status
from tests import factories
from tests import factories as make
from tests.broker_fixtures import Broker, until
from tests.whole_worker import Login, Viewers, working
from worker.broker import topology
from worker.broker.management import Management
from worker.errors import ViewerError
from worker.operate import viewers as identities
from worker.operate.viewers import Access, Viewer
from worker.settings import Settings
from worker.store.audit import By

BY = By("tests", "")
pytestmark = pytest.mark.broker


@asynccontextmanager
async def channel_of(login: Login) -> AsyncIterator[AbstractChannel]:
    """A channel with confirms, on a connection of the viewer's own."""
    connection = await aio_pika.connect(login.url)
    async with connection:
        yield await connection.channel(on_return_raises=True)


async def publish(
    channel: AbstractChannel,
    body: bytes | str,
    routing_key: str,
    *,
    exchange: str = amqp.INGEST_EXCHANGE,
    **properties: Any,
) -> None:
    message = aio_pika.Message(
        body.encode() if isinstance(body, str) else body, message_id=uuid4().hex, **properties
    )
    await (await channel.get_exchange(exchange, ensure=False)).publish(message, routing_key)


async def publish_as(login: Login, body: bytes | str, **properties: Any) -> None:
    """Publishes as a well-behaved viewer does, but for `properties`."""
    async with channel_of(login) as channel:
        await publish(
            channel, body, amqp.attempts_key(login.name), **{"user_id": login.name} | properties
        )


async def result_of(broker: Broker, login: Login) -> dict[str, Any]:
    """The next result in the viewer's queue."""
    return dict(json.loads((await broker.take(amqp.results_queue(login.name))).body))


async def body_for(engine: AsyncEngine, user_id: int) -> str:
    """A batch that is right in every other respect."""
    (question,) = await factories.publish(engine, user_id=user_id)
    return factories.batch(factories.right(question)).model_dump_json()


async def test_the_library_works_with_a_login_of_least_rights(
    viewers: Viewers, settings: Settings, engine: AsyncEngine, tmp_path: Path
) -> None:
    login = await viewers.add(42)
    (question,) = await factories.publish(engine, user_id=42)
    batch = factories.batch(factories.right(question))
    with Outbox(tmp_path / "outbox.sqlite") as outbox:
        with closing(sqlite3.connect(outbox.path)) as local, local:
            outbox.record(local, batch)  # type: ignore[arg-type]  # the same wire, copied into the library
        relay = Relay(outbox, login.url, login.name, RelaySettings(declare_results_queue=False))
        async with working(settings, engine), relay:
            entry = await relay.until_settled(batch.client_session_uuid)
    assert entry.result is not None
    assert entry.result.status is Status.INGESTED


async def _ignore(_: object) -> None:
    pass


def forbidden(login: Login, other: Login) -> dict[str, Callable[[AbstractChannel], Awaitable[Any]]]:
    """What a viewer might try, by what it would be."""
    own_queue, others_queue = amqp.results_queue(login.name), amqp.results_queue(other.name)

    async def get(channel: AbstractChannel, queue: str) -> Any:
        return await (await channel.get_queue(queue, ensure=False)).get(fail=False)

    async def consume(channel: AbstractChannel, queue: str) -> Any:
        return await (await channel.get_queue(queue, ensure=False)).consume(_ignore)

    async def bind(channel: AbstractChannel, queue: str, exchange: str, key: str) -> Any:
        return await (await channel.get_queue(queue, ensure=False)).bind(exchange, key)

    async def purge(channel: AbstractChannel, queue: str) -> Any:
        return await (await channel.get_queue(queue, ensure=False)).purge()

    return {
        "read another's results": lambda c: get(c, others_queue),
        "consume another's results": lambda c: consume(c, others_queue),
        "consume the batches": lambda c: consume(c, amqp.ATTEMPTS_QUEUE),
        "read the dead letters": lambda c: get(c, amqp.DEAD_QUEUE),
        "bind another's results to its queue": lambda c: bind(
            c, own_queue, amqp.RESULTS_EXCHANGE, amqp.result_key(other.name)
        ),
        "bind others' batches to its queue": lambda c: bind(
            c, own_queue, amqp.INGEST_EXCHANGE, "#"
        ),
        "declare a queue": lambda c: c.declare_queue(f"mine-{login.name}"),
        "declare an exclusive queue": lambda c: c.declare_queue(exclusive=True),
        "declare an exchange": lambda c: c.declare_exchange(f"mine-{login.name}"),
        "delete its own queue": lambda c: c.queue_delete(own_queue),
        "delete the exchange": lambda c: c.exchange_delete(amqp.INGEST_EXCHANGE),
        "purge another's queue": lambda c: purge(c, others_queue),
        "purge the batches": lambda c: purge(c, amqp.ATTEMPTS_QUEUE),
        "publish a result": lambda c: publish(
            c, b"{}", amqp.result_key(other.name), exchange=amqp.RESULTS_EXCHANGE
        ),
        "publish as another": lambda c: publish(c, b"{}", amqp.attempts_key(other.name)),
        "publish beside its key": lambda c: publish(c, b"{}", f"attempts.v1.{login.name}.x"),
        "publish a new version as another": lambda c: publish(
            c, b"{}", f"attempts.v2.{other.name}"
        ),
        "forge its user id": lambda c: publish(
            c, b"{}", amqp.attempts_key(login.name), user_id=other.name
        ),
        "put a batch straight into the queue": lambda c: publish(
            c, b"{}", amqp.ATTEMPTS_QUEUE, exchange=""
        ),
        "pose as what has waited for a retry": lambda c: publish(
            c,
            b"{}",
            amqp.attempts_key(other.name),
            exchange=amqp.RETURN_EXCHANGE,
            headers={amqp.VIEWER_HEADER: other.name},
        ),
        "park a dead letter": lambda c: publish(c, b"{}", "", exchange=amqp.DEAD_EXCHANGE),
        "cause a follow-up job": lambda c: publish(
            c, b"{}", EXPLANATION.routing_key, exchange=amqp.FOLLOWUPS_EXCHANGE
        ),
        "publish by MQTT's exchange": lambda c: publish(
            c, b"{}", amqp.attempts_key(login.name), exchange="amq.topic"
        ),
    }


async def test_a_viewer_can_do_nothing_else(viewers: Viewers) -> None:
    login, other = await viewers.add(1), await viewers.add(2)
    done = []
    connection = await aio_pika.connect(login.url)
    async with connection:
        for what, attempt in forbidden(login, other).items():
            channel = await connection.channel(on_return_raises=True)
            try:
                await attempt(channel)
            except ChannelClosed:
                continue
            except AMQPError as error:
                pytest.fail(f"{what}: refused otherwise than by the broker's word: {error!r}")
            done.append(what)
    assert done == []


async def test_a_viewer_of_the_http_api_can_change_nothing_there(
    viewers: Viewers, broker: Broker
) -> None:
    login = await viewers.add(1, access=Access(http=True))
    other = await viewers.add(2)
    auth = (login.name, login.password)
    vhost = broker.vhost

    async def ask(method: str, path: str, body: Any = None) -> int:
        # The broker may close a connection on which it refused what it has not read to the end.
        headers = {"Connection": "close"}
        try:
            answer = await broker.api.request(
                method, path, json=body, auth=auth, headers=headers, timeout=30
            )
        except httpx.RemoteProtocolError:
            return 599  # RabbitMQ 3.10 hangs up on a publish in another's name
        return answer.status_code

    assert await ask("PUT", f"queues/{vhost}/mine", {}) in (401, 403)
    assert await ask("DELETE", f"queues/{vhost}/{amqp.ATTEMPTS_QUEUE}") in (401, 403)
    assert await ask("DELETE", f"queues/{vhost}/{amqp.ATTEMPTS_QUEUE}/contents") in (401, 403)
    get = {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}
    for queue in (amqp.results_queue(other.name), amqp.ATTEMPTS_QUEUE, amqp.DEAD_QUEUE):
        assert await ask("POST", f"queues/{vhost}/{queue}/get", get) in (401, 403)
    for path in (
        "users",
        f"permissions/{vhost}/{login.name}",
        f"policies/{vhost}/x",
        "definitions",
    ):
        assert await ask("PUT", path, {}) in (401, 403, 405)
    message = {"properties": {"user_id": other.name}, "payload": "{}", "payload_encoding": "string"}
    own = message | {"routing_key": amqp.attempts_key(login.name)}
    assert await ask("POST", f"exchanges/{vhost}/{amqp.INGEST_EXCHANGE}/publish", own) >= 400
    others = message | {"routing_key": amqp.attempts_key(other.name), "properties": {}}
    assert await ask("POST", f"exchanges/{vhost}/{amqp.INGEST_EXCHANGE}/publish", others) >= 400
    assert await broker.depth(amqp.ATTEMPTS_QUEUE) == 0


async def letters(engine: AsyncEngine) -> list[dict[str, Any]]:
    return await factories.rows(engine, "SELECT * FROM ingest_dead_letters ORDER BY id")


async def test_a_message_without_a_user_id_is_refused(
    viewers: Viewers, broker: Broker, settings: Settings, engine: AsyncEngine
) -> None:
    login = await viewers.add(42)
    await publish_as(login, await body_for(engine, 42), user_id=None)
    async with working(settings, engine):
        (letter,) = await until(lambda: letters(engine), bool)
    assert letter["reason"] == RejectReason.UNIDENTIFIED_PUBLISHER
    assert letter["viewer"] == ""
    assert await factories.rows(engine, "SELECT * FROM ingest_inbox") == []
    assert await broker.depth(amqp.results_queue(login.name)) == 0


async def test_a_viewer_without_a_grant_is_denied_until_it_has_one(
    viewers: Viewers, broker: Broker, settings: Settings, engine: AsyncEngine
) -> None:
    login = await viewers.add()
    body = await body_for(engine, 42)
    async with working(settings, engine):
        await publish_as(login, body)
        refused = await result_of(broker, login)
        await identities.grant(viewers.accounts, engine, login.name, [41], BY)
        await publish_as(login, body)
        refused_again = await result_of(broker, login)
        await identities.grant(viewers.accounts, engine, login.name, [42], BY)
        await publish_as(login, body)
        taken = await result_of(broker, login)
    assert refused["reason"] == refused_again["reason"] == RejectReason.PRINCIPAL_NOT_GRANTED
    assert taken["status"] == Status.INGESTED


async def test_copying_headers_reach_nobody_else(
    viewers: Viewers, broker: Broker, settings: Settings, engine: AsyncEngine
) -> None:
    """CC and BCC add routing keys; brokers before 4.0 hold no topic permission against them."""
    login, other = await viewers.add(42), await viewers.add(43)
    others_key = amqp.attempts_key(other.name)
    copied = 0
    for header in ("CC", "BCC"):
        try:
            await publish_as(login, await body_for(engine, 43), headers={header: [others_key]})
            copied += 1
        except ChannelClosed:
            assert (await viewers.accounts.version()) >= "4"
    async with working(settings, engine) as worker:
        assert await worker.changed.until(lambda: worker.counts["rejected"] == copied, 15)
    reasons = [letter["reason"] for letter in await letters(engine)]
    # The broker takes BCC away and delivers under the viewer's own key: its own grants hold.
    expected = [RejectReason.MALFORMED, RejectReason.PRINCIPAL_NOT_GRANTED][:copied]
    assert sorted(reasons) == sorted(expected)
    assert await broker.depth(amqp.results_queue(other.name)) == 0
    assert await factories.rows(engine, "SELECT * FROM ingest_inbox") == []


async def test_headers_that_a_worker_writes_are_not_believed_of_a_viewer(
    viewers: Viewers, broker: Broker, settings: Settings, engine: AsyncEngine
) -> None:
    login, other = await viewers.add(42), await viewers.add(43)
    forged = {
        amqp.VIEWER_HEADER: other.name,
        amqp.ROUTING_KEY_HEADER: amqp.attempts_key(other.name),
        amqp.RETRIES_HEADER: 99,
        "x-death": [{"count": 99, "queue": amqp.ATTEMPTS_QUEUE, "reason": "expired"}],
        "x-delivery-count": 99,
    }
    async with working(settings, engine):
        await publish_as(login, await body_for(engine, 43), headers=forged)
        told = await result_of(broker, login)
    assert told["reason"] == RejectReason.PRINCIPAL_NOT_GRANTED
    (letter,) = await letters(engine)
    assert letter["viewer"] == login.name
    assert letter["routing_key"].decode() == amqp.attempts_key(login.name)


async def test_rotation_ends_the_old_login_and_its_connections(
    viewers: Viewers, engine: AsyncEngine
) -> None:
    old = await viewers.add(42)
    channel = await (await aio_pika.connect(old.url)).channel()
    new = viewers.login(old.name, await identities.rotate(viewers.accounts, engine, old.name, BY))

    async def is_closed() -> bool:
        return channel.is_closed

    await until(is_closed, bool)
    with pytest.raises(ProbableAuthenticationError):
        await aio_pika.connect(old.url)
    async with channel_of(new) as new_channel:
        queue = await new_channel.get_queue(amqp.results_queue(new.name), ensure=False)
        assert await queue.get(fail=False) is None


async def test_a_revoked_viewer_is_gone_with_what_waits_for_it(
    viewers: Viewers, broker: Broker, settings: Settings, engine: AsyncEngine
) -> None:
    login = await viewers.add(42)
    await publish_as(login, await body_for(engine, 42))
    await identities.revoke(viewers.accounts, engine, login.name, BY)
    async with working(settings, engine):
        (letter,) = await until(lambda: letters(engine), bool)
    assert letter["reason"] == RejectReason.PRINCIPAL_NOT_GRANTED
    with pytest.raises(ProbableAuthenticationError):
        await aio_pika.connect(login.url)
    with pytest.raises(ViewerError, match="no viewer"):
        await identities.revoke(viewers.accounts, engine, login.name, BY)
    assert amqp.results_queue(login.name) not in await viewers.accounts.queue_names()


async def test_only_viewers_can_be_rotated_and_revoked(
    viewers: Viewers, engine: AsyncEngine
) -> None:
    administrator = viewers.accounts.user
    with pytest.raises(ViewerError, match="already"):
        await identities.add(viewers.accounts, engine, administrator, [], Access(), BY)
    with pytest.raises(ViewerError, match="no viewer"):
        await identities.rotate(viewers.accounts, engine, administrator, BY)
    with pytest.raises(ViewerError, match="no viewer"):
        await identities.revoke(viewers.accounts, engine, administrator, BY)
    assert administrator in await viewers.accounts.users()


async def test_the_list_shows_logins_and_grants(viewers: Viewers, engine: AsyncEngine) -> None:
    plain = await viewers.add(7, 3)
    mqtt = await viewers.add(access=Access(mqtt="amq.topic"))
    with pytest.raises(ViewerError, match="no user 'nobody'"):
        await identities.grant(viewers.accounts, engine, "nobody", [9], BY)
    with pytest.raises(ViewerError, match="can't name a viewer"):
        await identities.grant(viewers.accounts, engine, "a.b", [9], BY)
    await make.grant(engine, "without-login", 9)
    await make.grant(engine, "no viewer's <name>", 9)
    found = {each.name: each for each in await identities.listed(viewers.accounts, engine)}
    assert set(found) == {plain.name, mqtt.name, "without-login", "no viewer's <name>"}
    assert (found[plain.name].users, found[plain.name].mqtt) == ((3, 7), False)
    assert (found[mqtt.name].users, found[mqtt.name].mqtt) == ((), True)
    assert not found["without-login"].has_login
    assert {each.heard_at for each in found.values()} == {None}


async def test_the_list_says_when_each_was_heard_of_and_finds_the_silent(
    viewers: Viewers, broker: Broker, settings: Settings, engine: AsyncEngine
) -> None:
    here, gone = await viewers.add(42), await viewers.add(42)
    now = datetime.now(UTC)

    async def listed(silent_since: datetime | None = None) -> dict[str, Viewer]:
        found = await identities.listed(viewers.accounts, engine, silent_since)
        return {each.name: each for each in found}

    async with working(settings, engine):
        for login in (here, gone):
            await publish_as(login, await body_for(engine, 42))
            await publish_as(login, "no batch")
        await until(lambda: letters(engine), lambda found: len(found) == 2)
        found = await until(listed, lambda found: found[gone.name].results_waiting == 1)
    assert found[here.name].rejected_lately == 1
    assert found[here.name].last_batch_at >= now
    assert found[here.name].heard_at >= found[here.name].last_batch_at

    for table, at in (("ingest_inbox", "received_at"), ("ingest_dead_letters", "died_at")):
        change = f"UPDATE {table} SET {at} = {at} - interval '8 days' WHERE viewer <> ''"
        await make.execute(engine, change)
    connection = await aio_pika.connect(here.url)
    try:
        found = await until(listed, lambda found: found[here.name].connected_since is not None)
        assert {each.rejected_lately for each in found.values()} == {0}
        assert set(await listed(now - timedelta(days=7))) == {gone.name}
        assert set(await listed(now - timedelta(days=9))) == set()
    finally:
        await connection.close()


async def test_a_name_that_could_reach_further_is_refused(
    viewers: Viewers, engine: AsyncEngine
) -> None:
    for name in ("", "a.b", "a b", "#", "a\n", "é", "x" * 65):
        with pytest.raises(ViewerError, match="can't name a viewer"):
            await identities.add(viewers.accounts, engine, name, [1], Access(), BY)


async def test_a_worker_works_with_the_rights_of_its_role(
    viewers: Viewers, broker: Broker, settings: Settings, engine: AsyncEngine
) -> None:
    """The rights that SECURITY.md gives a worker's login: enough to run, and not to publish."""
    login = await viewers.add(42)
    words = (Path(__file__).parents[2] / "SECURITY.md").read_text(encoding="utf-8")
    configure, write, read = re.findall(r"'(\^[^']*\$)'", words)
    worker = viewers.login(f"{login.name}-worker", "planted")
    await viewers.accounts.put_user(worker.name, "planted", ["monitoring", "policymaker"])
    try:
        await viewers.accounts.permit(worker.name, configure=configure, write=write, read=read)
        own: dict[str, SecretStr | None] = {
            "amqp_url": SecretStr(worker.url),
            "management_url": None,
        }
        if settings.management_url is not None:
            url = urlsplit(settings.management_url.get_secret_value())
            netloc = f"{worker.name}:planted@{url.netloc.rpartition('@')[2]}"
            own["management_url"] = SecretStr(url._replace(netloc=netloc).geturl())
        as_worker = settings.model_copy(update=own)
        async with Management(as_worker) as management:
            await topology.check(management, as_worker)
        async with working(as_worker, engine):
            await until(partial(broker.consumers, amqp.PROGRESS_QUEUE), bool)
            await publish_as(login, await body_for(engine, 42))
            assert (await result_of(broker, login))["status"] == Status.INGESTED
            await publish_as(login, "no body")
            await until(lambda: letters(engine), bool)
            await publish_as(login, "{}", type="study.attempt_batch.v2")
            await broker.until_depth(amqp.NEWER_QUEUE, 1)
        async with channel_of(worker) as channel:
            with pytest.raises(ChannelClosed):
                await publish(channel, b"{}", amqp.attempts_key(login.name))
    finally:
        await viewers.accounts.delete_user(worker.name)
