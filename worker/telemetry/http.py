"""The worker's HTTP port: `/live`, `/ready` and `/metrics`, for supervisors and Prometheus.

It runs in a thread of its own, so that it gives a true answer while the event loop is stuck. Two
functions, which the caller passes, decide the answers.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import make_wsgi_app


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

    with make_server(
        host, port, application, server_class=WSGIServer, handler_class=_Silent
    ) as server:
        thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing, because probes arrive every few seconds."""
