"""Whether a server answers and speaks the right protocol: the first words of three protocols.

It uses the standard library only. A TCP connection alone proves little, because a server that is
still starting, or another server on the port, accepts connections as well.
"""

import base64
import socket
import struct
import urllib.error
import urllib.parse
import urllib.request

PATIENCE = 3.0  # seconds for one answer


def postgres_ready(port: int, user: str, database: str) -> bool:
    """Whether a PostgreSQL on the loopback accepts `user` in `database` without a password."""
    words = f"user\0{user}\0database\0{database}\0\0".encode()
    hello = struct.pack("!ii", 8 + len(words), 196608) + words
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
            connection.sendall(hello)
            stream = connection.makefile("rb")
            while head := stream.read(5):
                kind, length = struct.unpack("!ci", head)
                stream.read(length - 4)
                if kind in b"ZE":
                    connection.sendall(b"X\0\0\0\4")  # or it logs that we broke off
                    return bool(kind == b"Z")
    except OSError:
        pass
    return False


def amqp_ready(port: int) -> bool:
    """Whether an AMQP 0-9-1 broker on the loopback answers."""
    return _amqp_trouble("127.0.0.1", port) is None


def management_ready(port: int) -> bool:
    """Whether RabbitMQ's management API on the loopback answers its user guest."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/whoami")
    request.add_header("Authorization", "Basic " + base64.b64encode(b"guest:guest").decode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PATIENCE) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def database_trouble(url: str) -> str | None:
    """Why no PostgreSQL answers at this URL. None if one does. It does not log in."""
    parts = urllib.parse.urlsplit(url)
    if not parts.scheme.startswith("postgres"):
        return f"{parts.scheme or url}: is not postgresql://"
    query = urllib.parse.parse_qs(parts.query)
    try:
        host = query.get("host", [parts.hostname or "127.0.0.1"])[0]
        port = int(query.get("port", [parts.port or 5432])[0])
        with _connect(host, port, f"{host}/.s.PGSQL.{port}") as connection:
            connection.sendall(struct.pack("!ii", 8, 80877103))  # do you speak TLS? S or N
            answer = connection.recv(1)
    except (OSError, ValueError) as trouble:
        return str(trouble)
    return None if answer in (b"S", b"N") else "something else answers there"


def broker_trouble(url: str) -> str | None:
    """Why no AMQP broker answers at this URL. None if one does. It does not log in.

    For amqps:// it only tries the TCP connection, because the client checks the certificate.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("amqp", "amqps"):
        return f"{parts.scheme or url}: is neither amqp:// nor amqps://"
    try:
        port = parts.port
    except ValueError as trouble:
        return str(trouble)
    if parts.scheme == "amqp":
        return _amqp_trouble(parts.hostname or "127.0.0.1", port or 5672)
    try:
        _connect(parts.hostname or "127.0.0.1", port or 5671).close()
    except OSError as trouble:
        return str(trouble)
    return None


def _amqp_trouble(host: str, port: int) -> str | None:
    try:
        with _connect(host, port) as connection:
            connection.sendall(b"AMQP\0\0\x09\1")
            frame = connection.makefile("rb").read(11)
    except OSError as trouble:
        return str(trouble)
    # a method frame (1) on channel 0, whose method is connection.start (10, 10)
    greets = frame[:3] == b"\1\0\0" and frame[7:] == b"\0\x0a\0\x0a"
    return None if greets else "something else answers there"


def _connect(host: str, port: int, unix_socket: str = "") -> socket.socket:
    if host.startswith("/"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(unix_socket)
        except OSError:
            connection.close()
            raise
        return connection
    return socket.create_connection((host, port), PATIENCE)
