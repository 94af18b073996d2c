"""The findings about several servers in one URL: while one answers, nobody misses the others."""

import asyncio
from contextlib import suppress

from schemas.brokers import brokers
from worker.broker.connection import place
from worker.operate.doctor.finding import Finding
from worker.settings import Settings, libpq

Server = tuple[str, int]
"""A host and a port, or the folder of a socket and the port in its name."""


async def examine(settings: Settings) -> list[Finding]:
    """The findings. A URL with one server has none, because others say whether it can be used."""
    address = libpq.parse(settings.database_url.get_secret_value())
    named: dict[str, list[Server]] = {
        "INGEST_DATABASE_URL": [(host, port or 5432) for host, port in address.servers],
        "INGEST_AMQP_URL": [_server(url) for url in settings.brokers()],
    }
    if settings.management_url is not None:
        urls = brokers(settings.management_url.get_secret_value())
        named["INGEST_MANAGEMENT_URL"] = [_server(url) for url in urls]
    found = [
        await _reached(variable, servers, settings.connect_timeout)
        for variable, servers in named.items()
        if len(servers) > 1
    ]
    return [finding for each in found for finding in each]


async def _reached(variable: str, servers: list[Server], seconds: float) -> list[Finding]:
    there = await asyncio.gather(*(_is_there(server, seconds) for server in servers))
    away = [
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for (host, port), is_there in zip(servers, there, strict=True)
        if not is_there
    ]
    if not away:
        return [Finding("servers", "ok", f"All {len(servers)} servers in {variable} answer.")]
    return [
        Finding(
            "servers",
            "warning",
            f"{server} in {variable} can't be reached within {seconds:g} s.",
            "Start it, or remove it from the URL: each new connection may wait for it first.",
        )
        for server in away
    ]


async def _is_there(server: Server, seconds: float) -> bool:
    host, port = server
    with suppress(OSError):
        async with asyncio.timeout(seconds):
            if host.startswith(("/", "@")):
                _, writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return True
    return False


def _server(url: str) -> Server:
    host, _, port = place(url).rpartition(":")
    return host.strip("[]"), int(port)
