"""A connection pooler between a worker and its database is refused in one sentence."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from devtools import debian, instances
from devtools.places import unprivileged
from devtools.state import ports
from tests.broker_fixtures import until
from worker.errors import BehindPooler, DatabaseAway
from worker.settings import Settings
from worker.store import connecting, schema
from worker.store.engine import make_engine, transaction

_DROPPED = [
    *("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "row_security"),
    *connecting._PLANS,
]


@pytest.fixture(scope="module")
def pgbouncer() -> Path:
    """The folder of PgBouncer and its libraries, out of Debian's packages."""
    suite = debian.own_suite()
    if suite is None:
        pytest.skip("PgBouncer comes from Debian, and this is no Debian")
    packages = ["pgbouncer", "libcares2|libc-ares2", "libevent-2.1-7t64|libevent-2.1-7"]
    return debian.unpacked("pgbouncer", "PgBouncer", packages, suite=suite, megabytes=1, on_disk=2)


@contextmanager
def pooled(pgbouncer: Path, database_url: str, **words: str) -> Iterator[str]:
    """The URL of the test's database through PgBouncer with these words of its configuration."""
    server = make_url(database_url)
    folder = instances.new_folder("pgbouncer")
    folder.mkdir(parents=True, exist_ok=True)
    port = ports(folder / "ports.json", ["pooler"])["pooler"]
    configuration = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "any",
        **words,
    }
    user = unprivileged()
    file = folder / "pgbouncer.ini"
    file.write_text(
        f"[databases]\n* = host={server.host} port={server.port} user={server.username}"
        + (f" password={server.password}" if server.password else "")
        + "\n[pgbouncer]\n"
        + "".join(f"{word} = {value}\n" for word, value in configuration.items())
    )
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    libraries = ":".join(str(each.parent) for each in pgbouncer.glob("usr/lib/*/libevent-2*.so*"))
    process = subprocess.Popen(
        [pgbouncer / "usr/sbin/pgbouncer", "-q", file],
        env={"LD_LIBRARY_PATH": libraries},
        user=user.pw_uid if user else None,
        group=user.pw_gid if user else None,
        extra_groups=[] if user else None,
        cwd="/",
    )
    try:
        yield server.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    finally:
        process.kill()
        process.wait()
        instances.remove(folder)


async def checked(url: str) -> None:
    """As a worker checks at its start. Raises what that raises once the pooler is there."""
    settings = Settings(database_url=url, amqp_url="amqp://unused")  # type: ignore[arg-type]
    engine = make_engine(settings, connections=2, name="tests")

    def is_final(error: Exception | None) -> bool:
        return type(error) is not DatabaseAway

    async def outcome() -> Exception | None:
        try:
            await schema.check(engine)
            async with transaction(engine) as one, transaction(engine) as other:
                for connection in (one, other, one):
                    await connection.scalar(text("SELECT 1"))
        except Exception as error:
            return error
        return None

    try:
        found = await until(outcome, is_final)
        if found is not None:
            raise found
    finally:
        await engine.dispose()


@pytest.mark.parametrize("mode", ["session", "transaction"])
@pytest.mark.parametrize(
    ("dropped", "reason"),
    [
        ("", "unsupported startup parameter"),
        (",".join(_DROPPED), r"row_security is on|prepared statement"),
    ],
)
async def test_it_is_named_whatever_it_does_with_the_settings_of_sessions(
    pgbouncer: Path, database_url: str, mode: str, dropped: str, reason: str
) -> None:
    words = {"pool_mode": mode, "ignore_startup_parameters": dropped}
    with pooled(pgbouncer, database_url, **words) as url, pytest.raises(BehindPooler, match=reason):
        await checked(url)
