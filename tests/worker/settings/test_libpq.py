"""PostgreSQL's URLs: each word of libpq's is followed, or refused in one sentence."""

from pathlib import Path
from typing import Any

import pytest

from tests.broker_fixtures import make_settings
from worker.errors import SettingsError
from worker.settings import load_settings
from worker.settings.libpq import parse
from worker.store.connecting import arguments
from worker.store.engine import make_engine, transaction


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://", ((), (), None, None, None)),
        ("postgres://h/d", (("h",), (), None, None, "d")),
        ("postgresql://u:p%40%2F@h:5433/d%20b", (("h",), (5433,), "u", "p@/", "d b")),
        ("postgresql://u@h1:1,h2:2/d", (("h1", "h2"), (1, 2), "u", None, "d")),
        ("postgresql://h1:1,h2/d", (("h1", "h2"), (1, 5432), None, None, "d")),
        ("postgresql://[::1]:5433,h2:2/d", (("::1", "h2"), (5433, 2), None, None, "d")),
        ("postgresql:///d?host=/run/postgresql", (("/run/postgresql",), (), None, None, "d")),
        ("postgresql://%2Frun%2Fpg/d", (("/run/pg",), (), None, None, "d")),
        ("postgresql://h/d?host=other&port=1", (("other",), (1,), None, None, "d")),
        ("postgresql://?host=a,b&port=1,2", (("a", "b"), (1, 2), None, None, None)),
        ("postgresql://?host=a,b&port=7&dbname=d", (("a", "b"), (7,), None, None, "d")),
        ("postgresql://a/b?user=u&password=p", (("a",), (), "u", "p", "b")),
    ],
)
def test_what_an_url_says(url: str, expected: tuple[Any, ...]) -> None:
    found = parse(url)
    assert found[:5] == expected and found.words == {}


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://h/d", "must begin with postgresql://"),
        ("postgresql://u:planted@h:planted/d", "port that is not a number"),
        ("postgresql://u:planted@h:99999/d", "port that is not a number"),
        ("postgresql://u:pl#anted@h/d", "port that is not a number"),
        ("postgresql://u:pl?anted@h/d", "special characters of its login"),
        ("postgresql://[::1/d", "closing bracket"),
        ("postgresql://h1,h2,h3/d?port=1,2", "3 hosts and 2 ports"),
        ("postgresql://h/d?keepalives_idle=3", "keepalives_idle has no counterpart"),
        ("postgresql://h/d?service=mine", "service has no counterpart"),
        ("postgresql://h/d?hostaddr=10.0.0.1", "hostaddr has no counterpart"),
        ("postgresql://h/d?aplication_name=me", "no word 'aplication_name'"),
        ("postgresql://h/d?ssl=true", "no word 'ssl'"),
        ("postgresql://h/d?sslmode=require", "sslmode must be verify-full or disable"),
        ("postgresql://h/d?sslmode=disable&sslmode=allow", "sslmode must be"),
        ("postgresql://h/d?target_session_attrs=standby", "because a worker writes"),
        ("postgresql://h/d?client_encoding=latin1", "client_encoding must be"),
        ("postgresql://h/d?channel_binding=require", "channel_binding must be"),
        ("postgresql://h/d?connect_timeout=soon", "whole number of seconds"),
        ("postgresql://h/d?sslnegotiation=direct", "needs sslmode=verify-full"),
    ],
)
def test_what_is_refused_in_one_sentence(
    url: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INGEST_AMQP_URL", "amqp://localhost/")
    monkeypatch.setenv("INGEST_DATABASE_URL", url)
    with pytest.raises(SettingsError, match="INGEST_DATABASE_URL is not valid") as caught:
        load_settings()
    assert says in str(caught.value)
    assert "planted" not in str(caught.value) and "anted@" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "environment", "open"),
    [
        ("postgresql://u:p@/db?host=db.example.com", {}, True),
        ("postgresql://localhost,db.example.com/d", {}, True),
        ("postgresql://localhost/d?host=db.example.com", {}, True),
        ("postgresql://db.example.com/d?host=/run/postgresql", {}, False),
        ("postgresql:///d", {"PGHOST": "db.example.com"}, True),
        ("postgresql:///d", {"PGHOST": "/run/postgresql"}, False),
        ("postgresql://127.0.0.2,[::1]/d", {"PGHOST": "db.example.com"}, False),
        ("postgresql://?host=db.example.com&sslmode=verify-full", {}, False),
    ],
)
def test_the_hosts_that_are_really_used_decide_whether_tls_is_missed(
    url: str, environment: dict[str, str], open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGHOST", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = make_settings("amqp://localhost/", database_url=url, management_url=None)
    assert settings.unprotected() == (["INGEST_DATABASE_URL"] if open else [])


@pytest.mark.parametrize(
    "words",
    [
        "sslrootcert=/nowhere/root.pem",
        "sslrootcert={garbage}",
        "sslcert={garbage}",
        "sslcert=/nowhere/me.pem&sslkey=/nowhere/me.key",
        "sslcrl=/nowhere/revoked.pem",
        "ssl_min_protocol_version=SSLv9",
    ],
)
def test_a_certificate_that_cannot_be_used_is_one_sentence(words: str, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("not a certificate")
    url = "postgresql://h/d?sslmode=verify-full&" + words.format(garbage=garbage)
    settings = make_settings("amqp://localhost/", database_url=url)
    with pytest.raises(SettingsError, match=r"^INGEST_DATABASE_URL names a ssl.*: correct it\.$"):
        make_engine(settings, connections=1, name="tests")


async def test_the_words_arrive(database_url: str, unused_tcp_port: int) -> None:
    address = parse(database_url)
    (host,), (port,) = address.hosts, address.ports
    url = (
        f"postgresql://{address.user}@127.0.0.1:{unused_tcp_port},{host}:{port}/{address.database}"
        "?application_name=mine&fallback_application_name=no&connect_timeout=3"
        "&options=-c%20work_mem%3D7MB%20-c%20lock_timeout%3D1&target_session_attrs=read-write"
    )
    settings = make_settings("amqp://localhost/", database_url=url)
    assert arguments(parse(url), settings, "tests")["timeout"] == 3
    engine = make_engine(settings, connections=1, name="tests")
    async with transaction(engine) as connection:
        said = [
            (await connection.exec_driver_sql(f"SHOW {name}")).scalar()
            for name in ("application_name", "work_mem", "lock_timeout")
        ]
    await engine.dispose()
    assert said == ["mine", "7MB", "5s"]  # what workers rest on is theirs to say
