"""The broker's URL: each of the client's words is followed, any other refused in one sentence."""

from pathlib import Path

import pytest

from tests.broker_fixtures import make_settings
from worker.broker.connection import connect
from worker.broker.management import Management
from worker.errors import BrokerAway, SettingsError
from worker.settings import load_settings
from worker.settings.amqp_url import words


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("no_verify_ssl=1", "lets anybody pose as the broker"),
        ("no_verify_ssl", "lets anybody pose as the broker"),
        ("timeout=3", "set INGEST_CONNECT_TIMEOUT instead"),
        ("connection_timeout=3000", "set INGEST_CONNECT_TIMEOUT instead"),
        ("name=mine", "workers name their connections themselves"),
        ("cacertfile=/ca.pem", "cacertfile is called cafile here"),
        ("auth_mechanism=external", "auth_mechanism is called auth here"),
        ("verify=verify_none", "the broker is always verified"),
        ("channel_max=8", "channel_max has no counterpart"),
        ("reconnect_interval=5", "workers reconnect by"),
        ("ca_file=/ca.pem", "know no word 'ca_file'"),
        ("Heartbeat=10", "know no word 'Heartbeat'"),
        ("x" * 200 + "=1", "know no word '" + "x" * 40 + "'"),
        ("cafile", "cafile has no value"),
        ("heartbeat=", "heartbeat has no value"),
        ("heartbeat=soon", "heartbeat must be a number"),
        ("heartbeat=-1", "heartbeat must be a number"),
        ("heartbeat=10&heartbeat=1.5", "heartbeat must be a number"),
        ("happy_eyeballs_delay=1.2.3", "happy_eyeballs_delay must be a number"),
        ("auth=scram", "auth must be plain or external"),
        ("keyfile=/me.key", "keyfile needs certfile"),
        ("cadata=garbage!", "cadata must be certificates"),
        ("anted@host/", "special characters in its login"),
    ],
)
def test_what_is_refused_in_one_sentence(
    query: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INGEST_DATABASE_URL", "postgresql://localhost/d")
    monkeypatch.setenv("INGEST_AMQP_URL", f"amqps://u:planted@host/v?{query}")
    with pytest.raises(SettingsError, match="INGEST_AMQP_URL is not valid") as caught:
        load_settings()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "planted" not in str(caught.value) and "anted@" not in str(caught.value)


def test_what_is_followed() -> None:
    query = "cafile=/a%20b.pem&capath=/c&certfile=/me.pem&keyfile=/me.key&cadata=AAAA"
    more = "heartbeat=7&auth=external&interleave=1&happy_eyeballs_delay=0.25"
    assert words(f"amqps://u:p@h/v?{query}&{more}") == {
        "cafile": "/a b.pem",
        "capath": "/c",
        "certfile": "/me.pem",
        "keyfile": "/me.key",
        "cadata": "AAAA",
        "heartbeat": "7",
        "auth": "external",
        "interleave": "1",
        "happy_eyeballs_delay": "0.25",
    }
    assert words("amqp://localhost/") == {}


@pytest.mark.parametrize(
    "query",
    [
        "cafile=/nowhere/root.pem",
        "cafile={garbage}",
        "cadata=AAAA",
        "certfile={garbage}",
        "certfile=/nowhere/me.pem&keyfile=/nowhere/me.key",
    ],
)
async def test_a_certificate_that_cannot_be_used_is_one_sentence(
    query: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("not a certificate")
    url = f"amqps://127.0.0.1:{unused_tcp_port}/?{query.format(garbage=garbage)}"
    settings = make_settings(url, management_url=None)
    with pytest.raises(SettingsError, match=r"^INGEST_AMQP_URL names a c.*\): correct it\.$"):
        Management(settings)
    with pytest.raises(BrokerAway, match="can't be reached"):
        await connect(settings, "test")
