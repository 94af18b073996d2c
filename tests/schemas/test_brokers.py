"""One URL names one broker, or several with the same login, vhost and words."""

import pytest

from schemas.brokers import brokers


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://localhost", ("amqp://localhost",)),
        ("amqp://a:b@h:5672/v?x=1,2", ("amqp://a:b@h:5672/v?x=1,2",)),
        ("amqps://a:p,@h1,h2:1/v", ("amqps://a:p,@h1/v", "amqps://a:p,@h2:1/v")),
        ("amqp://[::1]:1,[::2]/v", ("amqp://[::1]:1/v", "amqp://[::2]/v")),
        ("http://h1:1,h2:2?a=/,@", ("http://h1:1?a=/,@", "http://h2:2?a=/,@")),
        ("amqp://", ("amqp://",)),
        ("nonsense", ("nonsense",)),
    ],
)
def test_each_broker_has_an_url_of_its_own(url: str, expected: tuple[str, ...]) -> None:
    assert brokers(url) == expected


@pytest.mark.parametrize(
    "url", ["amqp://u:secret@h1,", "amqp://u:secret@,h2", "amqp://u:secret@h,:1"]
)
def test_one_of_several_without_a_host_is_refused_without_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="one of them is empty") as caught:
        brokers(url)
    assert "secret" not in str(caught.value)
