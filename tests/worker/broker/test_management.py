"""The management client: the URL that it uses, and its errors."""

import pytest
from pydantic import SecretStr

from tests.broker_fixtures import Broker, make_settings
from worker.broker.management import Management
from worker.errors import BrokerAway, TopologyError


@pytest.mark.parametrize(
    ("amqp_url", "management_url", "base", "user", "vhost"),
    [
        ("amqp://ada:p@rabbit/study", None, "http://rabbit:15672/api/", "ada", "study"),
        ("amqps://ada:p@rabbit:5671/", None, "https://rabbit:15671/api/", "ada", "/"),
        ("amqp://rabbit", None, "http://rabbit:15672/api/", "guest", "/"),
        ("amqp://rabbit/%2F", None, "http://rabbit:15672/api/", "guest", "/"),
        ("amqp://[::1]:5672/a%2Fb", None, "http://[::1]:15672/api/", "guest", "a/b"),
        ("amqp://ada:p@rabbit/v", "http://api:8080", "http://api:8080/api/", "ada", "v"),
        ("amqp://ada:p@rabbit/v", "https://eve:q@api/mq/", "https://api/mq/api/", "eve", "v"),
    ],
)
async def test_the_management_url_is_derived_from_the_amqp_url(
    amqp_url: str, management_url: str | None, base: str, user: str, vhost: str
) -> None:
    async with Management(make_settings(amqp_url, management_url=management_url)) as management:
        assert str(management.http.base_url) == base
        assert (management.user, management.vhost) == (user, vhost)


async def test_an_api_that_is_away_is_told_without_the_password() -> None:
    settings = make_settings("amqp://ada:s3cret@127.0.0.1/", management_url="http://127.0.0.1:1")
    async with Management(settings) as management:
        with pytest.raises(BrokerAway) as raised:
            await management.version()
    assert "127.0.0.1:1 can't be reached (ConnectError)" in str(raised.value)
    assert "s3cret" not in str(raised.value)


@pytest.mark.broker
async def test_a_wrong_login_is_told_without_the_password(bare_broker: Broker) -> None:
    given = bare_broker.settings.management_url
    assert given is not None
    url = "http://nobody:s3cret@" + given.get_secret_value().rpartition("@")[2]
    stranger = bare_broker.settings.model_copy(update={"management_url": SecretStr(url)})
    async with Management(stranger) as management:
        with pytest.raises(TopologyError, match="refuses user 'nobody'") as raised:
            await management.version()
    assert "s3cret" not in str(raised.value)


@pytest.mark.broker
async def test_a_missing_vhost_is_told(bare_broker: Broker) -> None:
    url = bare_broker.settings.amqp_url.get_secret_value().rpartition("/")[0] + "/nowhere"
    lost = bare_broker.settings.model_copy(update={"amqp_url": SecretStr(url)})
    async with Management(lost) as management:
        with pytest.raises(TopologyError, match="create vhost 'nowhere'"):
            await management.exchanges()


@pytest.mark.broker
async def test_a_refused_value_is_told_with_the_brokers_reason(
    bare_broker: Broker, management: Management
) -> None:
    with pytest.raises(TopologyError, match=r"answers 400: .*no-such-type") as raised:
        await management.declare_exchange("x", "no-such-type")
    assert "\n" not in str(raised.value)


async def test_a_vhost_that_is_being_deleted_is_not_there(
    bare_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ 3.10 lists it without its name, for a moment that no test can wait for."""
    async with Management(bare_broker.settings) as management:
        listed = management._get

        async def with_another(path: str) -> object:
            return [{"cluster_state": {}}, *await listed(path)]

        monkeypatch.setattr(management, "_get", with_another)
        assert all("name" in each for each in await management.vhosts())
        await management.delete_vhost("one that is not there")
