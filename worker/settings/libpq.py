"""PostgreSQL's URLs as libpq reads them: every word means what it means there, or is refused.

    postgresql://user:password@host1:port1,host2:port2/database?word=value&word=value

Pure: says what an URL asks for; files and environment variables that it names are read by others.
https://www.postgresql.org/docs/current/libpq-connect.html
"""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote

VERIFIED: Final = "verify-full"

_TRANSLATED: Final = (
    *("host", "port", "dbname", "user", "password", "passfile", "connect_timeout"),
    *("application_name", "fallback_application_name", "options", "krbsrvname"),
    *("sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version"),
)
"""Words that can have any value."""

_LIMITED: Final[Mapping[str, tuple[str, ...]]] = {
    "sslmode": ("disable", VERIFIED),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "read-write", "primary"),
    "client_encoding": ("auto", "utf8", "utf-8", "UTF8", "UTF-8"),
    # What the driver does, whatever is said.
    "channel_binding": ("disable", "prefer"),
    "gssdelegation": ("0",),
    "gssencmode": ("disable", "prefer"),
    "load_balance_hosts": ("disable",),
    "sslcertmode": ("allow",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
}
"""Words that can have these values, because nothing else would be done or be safe."""

_WITHOUT_COUNTERPART: Final = (
    *("hostaddr", "require_auth", "keepalives", "keepalives_idle", "keepalives_interval"),
    *("keepalives_count", "tcp_user_timeout", "replication", "sslkeylogfile", "sslcrldir"),
    *("requirepeer", "gsslib", "scram_client_key", "scram_server_key", "service", "servicefile"),
    *("min_protocol_version", "max_protocol_version", "oauth_issuer", "oauth_client_id"),
    *("oauth_client_secret", "oauth_scope"),
)
"""Words of libpq that the driver can't follow."""

_LONGEST_SHOWN: Final = 40


class Address(NamedTuple):
    """What an URL asks for; `words` are its parameters but for those with a field of their own."""

    hosts: tuple[str, ...]
    """Names, addresses, or folders of sockets; empty where the URL names none."""
    ports: tuple[int, ...]
    """One for each host, one for all, or none."""
    user: str | None
    password: str | None
    database: str | None
    words: Mapping[str, str]

    @property
    def servers(self) -> tuple[tuple[str, int | None], ...]:
        """Each host with its port; None is the driver's own."""
        ports: tuple[int | None, ...] = self.ports or (None,)
        return tuple(zip(self.hosts, ports * (len(self.hosts) // len(ports)), strict=True))

    @property
    def places(self) -> str:
        """The hosts with their ports, for people; empty where the URL names none."""
        ports = self.ports if len(self.ports) != 1 else self.ports * len(self.hosts)
        if not ports:
            return ", ".join(self.hosts)
        return ", ".join(f"{host}:{port}" for host, port in zip(self.hosts, ports, strict=False))

    @property
    def is_verified(self) -> bool:
        """Whether the server must prove who it is."""
        return self.words.get("sslmode") == VERIFIED


def parse(url: str) -> Address:
    """Reads an URL. Raises `ValueError` with a sentence that says nothing of its password."""
    scheme, colon, rest = url.partition("://")
    if not colon or scheme not in ("postgresql", "postgres"):
        raise ValueError("the URL must begin with postgresql://")
    rest, _, _ = rest.partition("#")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    login, _, servers = authority.rpartition("@")
    user, _, password = login.partition(":")
    words = _words(query)
    hosts, ports = _servers(servers)
    if host := words.pop("host", ""):
        hosts = tuple(host.split(","))
    if port := words.pop("port", ""):
        ports = tuple(_port(each) for each in port.split(","))
    if words.get("sslnegotiation") == "direct" and words.get("sslmode") != VERIFIED:
        raise ValueError(f"sslnegotiation=direct needs sslmode={VERIFIED}")
    if (not hosts and len(ports) > 1) or (hosts and len(ports) not in (0, 1, len(hosts))):
        raise ValueError(
            f"the URL names {len(hosts)} hosts and {len(ports)} ports: give each host a port, or"
            " one port for all"
        )
    return Address(
        hosts,
        ports,
        words.pop("user", "") or unquote(user) or None,
        words.pop("password", "") or unquote(password) or None,
        words.pop("dbname", "") or unquote(path) or None,
        words,
    )


def is_here(host: str) -> bool:
    """Whether a host is this machine: a socket's folder, or an address of the loopback."""
    if host.startswith(("/", "@")) or host.lower() in ("", "localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _servers(servers: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    if not servers:
        return (), ()
    hosts: list[str] = []
    ports: list[str] = []
    for server in servers.split(","):
        if server.startswith("["):
            host, bracket, port = server[1:].partition("]")
            if not bracket or (port and not port.startswith(":")):
                raise ValueError("the URL has an IPv6 address without its closing bracket")
            port = port[1:]
        else:
            host, _, port = server.partition(":")
        hosts.append(unquote(host))
        ports.append(port)
    if any(ports) and not all(ports):
        ports = [port or "5432" for port in ports]
    return tuple(hosts) if any(hosts) else (), tuple(_port(port) for port in ports if port)


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) < 65_536:
        return int(text)
    # What stands in the place of a port may be the end of a password.
    raise ValueError(
        "the URL has a port that is not a number from 1 to 65535: write special characters of its"
        " login as %XX"
    )


def _words(query: str) -> dict[str, str]:
    words: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if "@" in name:  # it may be the end of a password
            raise ValueError("the URL is not valid: write special characters of its login as %XX")
        allowed = _LIMITED.get(name)
        if name in _WITHOUT_COUNTERPART:
            raise ValueError(f"{name} has no counterpart in the driver: remove it from the URL")
        if allowed is None and name not in _TRANSLATED:
            shown = name[:_LONGEST_SHOWN]
            raise ValueError(f"PostgreSQL's URLs know no word {shown!r}: correct or remove it")
        if not value:
            continue
        if allowed is not None and value not in allowed:
            raise ValueError(_refusal(name, allowed))
        if name == "connect_timeout" and not (value.isascii() and value.isdigit()):
            raise ValueError("connect_timeout must be a whole number of seconds")
        words[name] = value
    return words


def _refusal(name: str, allowed: tuple[str, ...]) -> str:
    said = " or ".join(allowed)
    if name == "sslmode":
        return (
            f"sslmode must be {VERIFIED} or disable, because no other mode verifies the server;"
            " add sslrootcert if the system does not trust the server's authority"
        )
    if name == "target_session_attrs":
        return f"{name} must be {said}, because a worker writes"
    return f"{name} must be {said}, because the driver does nothing else"
