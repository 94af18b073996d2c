"""The worker's HTTP port: `/live`, `/ready` and `/metrics`, for supervisors and Prometheus.

It runs in threads of its own, so that it gives a true answer while the event loop is stuck. Two
functions, which the caller passes, decide the answers.
"""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import make_wsgi_app
from waitress import create_server, wasyncore

_CONNECTIONS_MAX: Final = 800
"""Open connections at once, fewer than the file descriptors that a process usually has."""
_IDLE_MAX: Final = 5
"""Seconds after which a connection is closed on which nothing arrives."""
_LOOK: Final = 1.0
"""Seconds between looks for idle connections."""


class Health(NamedTuple):
    """An answer, and the sentence that explains it."""

    ok: bool
    detail: str


Probe = Callable[[], Health]


@contextmanager
def served(host: str, port: int, *, live: Probe, ready: Probe) -> Iterator[int]:
    """Serves while the block runs. Yields the port, which is useful if `port` is 0.

    Raises OSError if the port is in use.
    """
    metrics = make_wsgi_app()
    probes = {"/live": live, "/ready": ready}

    def application(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "/")
        if path == "/metrics":
            ready()  # so that its gauge is current
            body: Iterable[bytes] = metrics(environment, start)
            return body
        if path not in probes:
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/live, /ready or /metrics\n"]
        health = probes[path]()
        status = "200 OK" if health.ok else "503 Service Unavailable"
        start(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
        return [json.dumps(health._asdict()).encode() + b"\n"]

    # Do not log a request that waits for a thread, or a client that has disconnected.
    logging.getLogger("waitress").setLevel(logging.ERROR)
    sockets: dict[int, Any] = {}
    with _listening(host, port) as listening:
        server = create_server(
            application,
            map=sockets,
            sockets=[listening],
            connection_limit=_CONNECTIONS_MAX,
            channel_timeout=_IDLE_MAX,
            cleanup_interval=_LOOK,
            ident=None,
        )
        ending = threading.Event()

        def serve() -> None:
            while not ending.is_set():
                wasyncore.loop(timeout=_LOOK, use_poll=True, map=sockets, count=1)

        thread = threading.Thread(target=serve, name="health", daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            # Open connections do not delay the end of the process.
            ending.set()
            server.pull_trigger()
            thread.join()
            server.task_dispatcher.shutdown(timeout=_LOOK)
            wasyncore.close_all(sockets)


def _listening(host: str, port: int) -> socket.socket:
    """A socket on this address; `::` serves IPv4 as well."""
    is_ipv6 = ":" in host
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    return socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
