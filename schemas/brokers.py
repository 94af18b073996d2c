"""Which brokers a URL names: one, or the nodes of a cluster.

    amqps://user:password@host1:port1,host2:port2/vhost?word=value

Pure, and known to both sides of the wire.
"""

import re
from typing import Final

_URL: Final = re.compile(
    r"(?P<before>[^/?#]*//(?:[^/?#]*@)?)(?P<hosts>[^/?#]*)(?P<after>.*)", re.DOTALL
)


def brokers(url: str) -> tuple[str, ...]:
    """The URL of each broker that a URL names, in its order, with the same login, path and words.

    Raises `ValueError`, which does not show the password, if one of several has no host.
    """
    parts = _URL.fullmatch(url)
    if parts is None:
        return (url,)
    hosts = parts["hosts"].split(",")
    if len(hosts) > 1 and not all(host.partition(":")[0] for host in hosts):
        raise ValueError("the URL names several hosts, and one of them is empty")
    return tuple(f"{parts['before']}{host}{parts['after']}" for host in hosts)
