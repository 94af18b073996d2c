"""Serves the console until a signal ends it."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn

from worker.console.app import application
from worker.console.state import running
from worker.console.who import Entrance
from worker.errors import SettingsError
from worker.settings import Settings
from worker.telemetry import logs

_log = structlog.get_logger(__name__)


async def serve(settings: Settings, owner: str) -> None:
    """Serves until SIGTERM or SIGINT. `owner` is who signs in where the settings name nobody.

    Raises `SettingsError` if nobody could sign in, or if the address can't be used.
    """
    entrance = Entrance(settings, owner)
    logs.configure(settings)
    with _listening(settings.console_host, settings.console_port) as listening:
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        async with running(settings, entrance) as console:
            config = uvicorn.Config(
                application(console),
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                # Who connects is who is believed: see `Entrance.is_proxy`.
                proxy_headers=False,
                ws="none",
                timeout_keep_alive=15,
                timeout_graceful_shutdown=5,
                limit_concurrency=200,
            )
            said = {} if entrance.made_token is None else {"token": entrance.made_token}
            _log.info("console.serving", address=address, **said)
            await _Server(config).serve(sockets=[listening])


class _Server(uvicorn.Server):
    """Ends at a signal as a worker does: with exit code 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            self.should_exit = True

        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, stop)
        try:
            yield
        finally:
            for each in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(each)


def _listening(host: str, port: int) -> socket.socket:
    """A socket on this address; `::` serves IPv4 as well."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
    except OSError as error:
        raise SettingsError(
            f"The console can't be served at {host}, port {port} ({error.strerror})",
            "choose another INGEST_CONSOLE_PORT or INGEST_CONSOLE_HOST.",
        ) from None
