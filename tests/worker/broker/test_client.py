"""What stands on the insides of the client notices when they are different.

The client is doctored as a new version of it might be: its own source, with a name changed.
"""

import asyncio
import inspect
import subprocess
import sys
from importlib import metadata
from types import ModuleType

import aiormq.channel
import aiormq.connection
import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from pamqp import decode
from structlog.testing import capture_logs

from schemas import amqp
from tests.broker_fixtures import VIEWER, Broker, until
from worker.broker import bodies, decoders, publisher
from worker.broker.publisher import Publisher, Unroutable, outgoing
from worker.broker.subscription import Delivery, Subscription
from worker.cli import process
from worker.errors import InstallationError, Unconfirmed
from worker.settings import Settings

KEY = amqp.attempts_key(VIEWER)


def doctored(module: ModuleType, old: str = "", new: str = "") -> ModuleType:
    """A copy of a module of the client, with one name changed."""
    source = inspect.getsource(module)
    assert old in source
    copy = ModuleType(module.__name__)
    copy.__package__ = module.__package__
    exec(source.replace(old, new), vars(copy))
    return copy


# ------------------------------------------------------------------------------- decoders


def test_importing_replaces_nothing() -> None:
    program = (
        "from pamqp import decode; before = dict(decode.METHODS), dict(decode.TABLE_MAPPING);"
        "import worker.broker.connection, worker.cli.process;"
        "assert (decode.METHODS, decode.TABLE_MAPPING) == before"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_installed_is_what_decodes() -> None:
    decoders.install()
    decoders.install()


@pytest.mark.parametrize("function", ["by_type", "field_table"])
async def test_a_client_that_decodes_with_other_tables_ends_the_start(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, function, getattr(doctored(decode), function))
    settings = Settings.model_validate(
        {"database_url": "postgresql://127.0.0.1:1/none", "amqp_url": "amqp://127.0.0.1:1/"}
    )
    for run in (process.run_worker, process.run_relay):
        with pytest.raises(InstallationError, match="pamqp"):
            await run(settings)


# ------------------------------------------------------------------------------- bursts


@pytest.fixture(params=["message_id_delivery_tag", "confirmations", "max_content_size"])
def renamed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose channel has another name for something that bursts stand on."""
    channel = doctored(aiormq.channel, request.param, f"new_{request.param}")
    monkeypatch.setattr(aiormq.connection, "Channel", channel.Channel)
    publisher._warn_of_no_bursts.cache_clear()


@pytest.mark.broker
@pytest.mark.usefixtures("renamed")
async def test_a_client_with_other_names_publishes_all_the_same_with_one_warning(
    broker: Broker,
) -> None:
    keys = [KEY if n % 3 else "nobody.is.bound" for n in range(250)]
    messages = [
        outgoing(amqp.INGEST_EXCHANGE, key, b"x" * n, message_id=f"m-{n}", type="t", headers={})
        for n, key in enumerate(keys)
    ]
    with capture_logs() as lines:
        for _ in range(2):
            async with Publisher(broker.settings) as publishing:
                fates = await publishing.publish_all(messages)
            assert [isinstance(fate, Unroutable) for fate in fates] == [key != KEY for key in keys]
    await broker.until_depth(amqp.ATTEMPTS_QUEUE, 2 * keys.count(KEY))
    first = [(await broker.take(amqp.ATTEMPTS_QUEUE)).properties["message_id"] for _ in range(3)]
    assert first == ["m-1", "m-2", "m-4"]
    assert [line["event"] for line in lines] == ["publisher.no_bursts"]
    assert lines[0]["aiormq"] == metadata.version("aiormq")


@pytest.mark.broker
@pytest.mark.usefixtures("renamed")
async def test_without_bursts_a_lost_connection_or_a_late_confirm_is_unconfirmed(
    broker: Broker,
) -> None:
    messages = [
        outgoing(amqp.INGEST_EXCHANGE, KEY, b"x", message_id=f"m-{n}", type="t", headers={})
        for n in range(300)
    ]
    impatient = broker.settings.model_copy(update={"publish_timeout": 0.000_1})
    async with Publisher(impatient) as publishing:
        fates = await publishing.publish_all(messages)
    assert {type(fate) for fate in fates} == {Unconfirmed}

    async with Publisher(broker.settings) as publishing:
        assert await publishing.publish_all(messages[:1]) == [None]
        await broker.cut("publisher")

        async def published() -> bool:
            return await publishing.publish_all(messages) == [None] * 300

        await until(published, bool)


# ------------------------------------------------------------------------------- bodies


async def _body_of(broker: Broker, size: int, room: int) -> bytes:
    """What is kept of a body of `size` bytes where there is room for `room`."""
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    subscription = await Subscription.open(
        broker.settings, amqp.ATTEMPTS_QUEUE, arrived.put_nowait, lambda: None, lambda _: room
    )
    try:
        await broker.publish(b"x" * size)
        await subscription.consume(10)
        delivery = await asyncio.wait_for(arrived.get(), 60)
        assert delivery.size == size
        await delivery.ack()
        return delivery.body
    finally:
        await subscription.close()


@pytest.mark.broker
async def test_bodies_are_bounded_where_the_client_reads_them_as_expected(broker: Broker) -> None:
    with capture_logs() as lines:
        assert len(await _body_of(broker, 300_000, 10)) == 10
    assert lines == []


@pytest.mark.broker
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_read_content", "_read_body"),
        ("_get_frame", "_next_frame"),
        ("header: ContentHeader,\n    ) ->", "header: ContentHeader, limit: int = 0\n    ) ->"),
    ],
    ids=["reader", "frames", "parameters"],
)
async def test_a_client_that_reads_bodies_otherwise_reads_them_whole_with_one_warning(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    monkeypatch.setattr(aiormq.connection, "Channel", doctored(aiormq.channel, old, new).Channel)
    bodies._warn_of_whole_bodies.cache_clear()
    with capture_logs() as lines:
        for _ in range(2):
            assert len(await _body_of(broker, 300, 10)) == 300
    assert [line["event"] for line in lines] == ["consumer.whole_bodies"]


def test_the_client_is_declared_in_narrow_ranges() -> None:
    required = {
        requirement.name: requirement
        for requirement in map(Requirement, metadata.requires("study-ingest") or ())
    }
    for name in ("aiormq", "pamqp"):
        installed = Version(metadata.version(name))
        assert required[name].specifier.contains(installed)
        next_minor = Version(f"{installed.major}.{installed.minor + 1}")
        assert not required[name].specifier.contains(next_minor), f"{name} is not watched there"
