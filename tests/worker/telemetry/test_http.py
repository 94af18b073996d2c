"""The HTTP port under clients that do not behave: others are answered, and the process ends."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from worker.telemetry.http import Health, served

CROWD = 500


@contextmanager
def port_of(host: str = "127.0.0.1") -> Iterator[int]:
    well = Health(True, "well")
    with served(host, 0, live=lambda: well, ready=lambda: well) as port:
        yield port


def live(host: str, port: int) -> int:
    with httpx.Client(trust_env=False, timeout=20) as http:
        return http.get(f"http://{host}:{port}/live").status_code


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="idle"),
        pytest.param(b"GET /live HTTP/1.1\r\nHost: x\r\n", id="half a request"),
        pytest.param(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", id="no reader"),
        pytest.param(
            b"POST /live HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{", id="half a body"
        ),
        pytest.param(b"\x16\x03\x01" + bytes(200), id="TLS"),
    ],
)
def test_a_crowd_that_only_connects_changes_nothing(sent: bytes) -> None:
    with ExitStack() as stack, port_of() as port:
        for _ in range(CROWD):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), 20))
            client.sendall(sent)
        assert live("127.0.0.1", port) == 200
    # And the server has ended, with all of them connected.
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), 1)


def test_a_connection_on_which_nothing_arrives_is_closed() -> None:
    with port_of() as port, socket.create_connection(("127.0.0.1", port), 20) as client:
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("::1", ["[::1]"]),
        ("::", ["127.0.0.1", "[::1]"]),
    ],
)
def test_it_serves_ipv4_and_ipv6(host: str, asked: list[str]) -> None:
    if ":" in host and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with port_of(host) as port:
        assert [live(each, port) for each in asked] == [200] * len(asked)


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
