"""A thin client of RabbitMQ's management API: what the broker has, and how to add to it.

The API is used at start and from time to time, but never for a single message, so a worker
continues to consume while the API is unreachable. `topology.py` decides which objects the project
wants.
"""

import asyncio
import random
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Self
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

import httpx

from schemas.brokers import brokers
from worker.broker.tls import context
from worker.errors import BrokerAway, TopologyError
from worker.settings import Settings, amqp_url

Json = dict[str, Any]

_PORT: Final = 15672
_PORT_TLS: Final = 15671
_DETAIL_MAX: Final = 200
_NOTHING_THERE: Final = 404


def _beside(broker: str) -> SplitResult:
    """The management API of a broker, by the URL of the broker."""
    amqp = urlsplit(broker)
    host = amqp_url.host(broker)
    if amqp.scheme == "amqps":
        return urlsplit(f"https://{host}:{_PORT_TLS}")
    return urlsplit(f"http://{host}:{_PORT}")


def _base(url: SplitResult) -> str:
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}"


class _AnyBroker(httpx.AsyncBaseTransport):
    """Sends each request to the broker that answered last, or else to another one.

    All brokers of a cluster know the same. A request that may have been carried out without an
    answer is sent again only if it changes nothing: a second one could take a second message. That
    is also done with a single broker, which may close a connection just when it is used again.
    """

    def __init__(self, bases: Sequence[str], transport: httpx.AsyncBaseTransport) -> None:
        self._bases = [httpx.URL(base) for base in random.sample(bases, len(bases))]
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        *others, last = tuple(self._bases)
        for base in others:
            try:
                return await self._ask(base, request)
            except httpx.TransportError as error:
                if self._bases[0] == base:  # no other request has found that out already
                    self._bases.append(self._bases.pop(0))
                was_not_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if not (was_not_sent or request.method == "GET"):
                    raise
        try:
            return await self._ask(last, request)
        except httpx.RemoteProtocolError:
            if request.method != "GET":
                raise
            return await self._ask(last, request)

    async def _ask(self, base: httpx.URL, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host=base.host, port=base.port)
        request.headers["Host"] = base.netloc.decode("ascii")
        try:
            return await self._transport.handle_async_request(request)
        except AttributeError as error:
            # What the client makes of a connection that was reset as soon as it was open: it asks
            # a socket for its peer that is gone.
            if error.name not in {"family", "getpeername", "getsockname"}:
                raise
            raise httpx.ConnectError("it was reset at once", request=request) from error

    async def aclose(self) -> None:
        await self._transport.aclose()


class Management:
    """The management API, for the vhost of `settings.amqp_url`.

    Use it as `async with Management(settings) as management`. Every method raises `BrokerAway` if
    the API is unreachable or fails, and `TopologyError` if it refuses (login, permission, vhost,
    value). Neither error contains a password.
    """

    def __init__(self, settings: Settings) -> None:
        amqp = urlsplit(settings.brokers()[0])
        given = settings.management_url
        urls = (
            [_beside(broker) for broker in settings.brokers()]
            if given is None
            else [urlsplit(each) for each in brokers(given.get_secret_value())]
        )
        url = urls[0]
        login = url if url.username else amqp
        self.user = unquote(login.username or "guest")
        self.vhost = unquote(amqp.path[1:]) or "/"
        bases = [_base(url) for url in urls]
        self._places = ", ".join(bases)
        self._vhost = quote(self.vhost, safe="")
        words = amqp_url.words(amqp.geturl())
        verify = context(words) if url.scheme == "https" else True
        # Public, for calls that have no method here. Its base is `api/`, and the login is set.
        self.http = httpx.AsyncClient(
            base_url=f"{bases[0]}/api/",
            auth=(self.user, unquote(login.password or "guest")),
            timeout=settings.connect_timeout,
            # The broker is close by, so the proxies and the .netrc of the machine do not apply.
            trust_env=False,
            transport=_AnyBroker(bases, httpx.AsyncHTTPTransport(verify=verify, trust_env=False)),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def version(self) -> str:
        """The broker's version, such as `3.10.8`."""
        overview = await self._get("overview")
        return str(overview.get("rabbitmq_version", "0"))

    async def feature_flags(self) -> list[Json]:
        """The feature flags, each with `name` and `state`."""
        flags: list[Json] = await self._get("feature-flags")
        return flags

    async def exchange_types(self) -> set[str]:
        """The types of exchanges that the broker knows, with those of its plugins."""
        overview = await self._get("overview")
        return {each["name"] for each in overview.get("exchange_types") or ()}

    async def vhosts(self) -> list[Json]:
        """The vhosts that the login may see, each with `name`.

        One that is being deleted may be listed without its name, and is left out.
        """
        vhosts: list[Json] = await self._get("vhosts")
        return [vhost for vhost in vhosts if "name" in vhost]

    async def exchanges(self) -> list[Json]:
        """The exchanges of the vhost, each with `name`, `type`, `durable` and `arguments`."""
        exchanges: list[Json] = await self._get(f"exchanges/{self._vhost}")
        return exchanges

    async def queues(self, pattern: str) -> list[Json]:
        """The queues of the vhost whose names match, up to 500, each with `name`, `type`, `durable`
        and `arguments`. Counts lag by seconds.

        The broker counts no other queues, so this costs little, however many viewers there are.
        """
        wanted = {"name": pattern, "use_regex": "true", "page": 1, "page_size": 500}
        found = await self._get(f"queues/{self._vhost}?{urlencode(wanted)}")
        queues: list[Json] = found["items"]
        return queues

    async def depths(self) -> dict[str, int]:
        """The messages in each queue of the vhost. The broker counts all of them, which takes it
        seconds where there are thousands.
        """
        found: list[Json] = await self._get(f"queues/{self._vhost}?columns=name,messages")
        return {queue["name"]: queue.get("messages") or 0 for queue in found}

    async def queue_names(self, among: Collection[str] | None = None) -> set[str]:
        """The names of all queues of the vhost, or of those `among` some."""
        if among is None:
            found = await self._get(f"queues/{self._vhost}?columns=name")
        else:
            found = await self._find(
                f"queues/{self._vhost}/{quote(name, safe='')}" for name in among
            )
        return {queue["name"] for queue in found}

    async def samples(self, pattern: str, *, seconds: int, every: int) -> list[Json]:
        """The samples that the broker has kept of up to 500 queues whose names match: how many
        messages were ready, and how many had been published and acknowledged until then.
        """
        wanted = {"name": pattern, "use_regex": "true", "page": 1, "page_size": 500}
        for what in ("lengths", "msg_rates"):
            wanted |= {f"{what}_age": seconds, f"{what}_incr": every}
        columns = [
            "name",
            "messages_ready_details.samples",
            "message_stats.publish_details.samples",
            "message_stats.ack_details.samples",
        ]
        wanted["columns"] = ",".join(columns)
        found: list[Json] = (await self._get(f"queues/{self._vhost}?{urlencode(wanted)}"))["items"]
        return found

    async def bindings_to(self, kind: str, name: str) -> list[Json]:
        """The bindings that lead to one of the vhost's "exchanges" or "queues", each with `source`,
        `destination`, `destination_type` and `routing_key`.
        """
        end = "/destination" if kind == "exchanges" else ""
        bindings: list[Json] = await self._get(
            f"{kind}/{self._vhost}/{quote(name, safe='')}/bindings{end}"
        )
        return bindings

    async def leads_somewhere(self, exchange: str) -> bool:
        """Whether anything is bound to the exchange. It costs little, however many queues exist."""
        path = f"exchanges/{self._vhost}/{quote(exchange, safe='')}/bindings/source"
        return bool(await self._get(path))

    async def policies(self) -> list[Json]:
        """The policies of the vhost, each with `name`, `pattern`, `apply-to`, `priority` and
        `definition`.
        """
        policies: list[Json] = await self._get(f"policies/{self._vhost}")
        return policies

    async def operator_policies(self) -> list[Json]:
        """The policies with which the broker's operator overrides the others, in the same form.
        Empty if the login may not see them.
        """
        try:
            policies: list[Json] = await self._get(f"operator-policies/{self._vhost}")
        except TopologyError:
            return []
        return policies

    async def connections(self) -> list[Json]:
        """The connections that the login may see, each with `name`, `vhost`, `user`,
        `client_properties`.
        """
        connections: list[Json] = await self._get("connections")
        return connections

    async def connected(self) -> dict[str, datetime]:
        """Since when each user has been connected to the vhost."""
        path = f"vhosts/{self._vhost}/connections?columns=user,connected_at"
        since: dict[str, datetime] = {}
        for each in await self._get(path):
            # A connection that was just opened has no time yet.
            if "user" in each and (at := each.get("connected_at")):
                moment = datetime.fromtimestamp(at / 1000, UTC)
                since[each["user"]] = min(moment, since.get(each["user"], moment))
        return since

    async def consumer_tags(self, queue: str) -> set[str] | None:
        """The tags of the queue's consumers; None if the API does not know them now.

        A new consumer is listed after up to 5 seconds, one that is gone is missing at once.
        """
        found = await self._get(f"queues/{self._vhost}/{quote(queue, safe='')}")
        consumers = found.get("consumer_details")
        if consumers is None:
            return None
        return {str(consumer.get("consumer_tag")) for consumer in consumers}

    async def has_message(self, queue: str) -> bool:
        """Whether a message waits in the queue now. Counts lag, so it takes one and returns it."""
        looked = await self._send(
            "POST",
            f"queues/{self._vhost}/{quote(queue, safe='')}/get",
            {"count": 1, "ackmode": "ack_requeue_true", "encoding": "base64", "truncate": 1},
        )
        return bool(looked.json())

    async def declare_exchange(self, name: str, kind: str) -> None:
        """Creates a durable exchange of type `kind`."""
        await self._send(
            "PUT",
            f"exchanges/{self._vhost}/{quote(name, safe='')}",
            {"type": kind, "durable": True, "auto_delete": False, "arguments": {}},
        )

    async def declare_queue(self, name: str, arguments: Json) -> None:
        """Creates a durable queue with `arguments`."""
        await self._send(
            "PUT",
            f"queues/{self._vhost}/{quote(name, safe='')}",
            {"durable": True, "auto_delete": False, "arguments": arguments},
        )

    async def bind(self, exchange: str, queue: str, routing_key: str) -> None:
        """Binds `queue` to `exchange`; binding twice makes no difference."""
        await self._send(
            "POST",
            f"bindings/{self._vhost}/e/{quote(exchange, safe='')}/q/{quote(queue, safe='')}",
            {"routing_key": routing_key, "arguments": {}},
        )

    async def bind_exchange(self, source: str, exchange: str, routing_key: str) -> None:
        """Binds the exchange `exchange` to `source`; binding twice makes no difference."""
        await self._send(
            "POST",
            f"bindings/{self._vhost}/e/{quote(source, safe='')}/e/{quote(exchange, safe='')}",
            {"routing_key": routing_key, "arguments": {}},
        )

    async def unbind(self, source: str, kind: str, destination: str, routing_key: str) -> None:
        """Removes a binding without arguments to a queue (`kind` "q") or an exchange ("e")."""
        ends = f"e/{quote(source, safe='')}/{kind}/{quote(destination, safe='')}"
        # The API encodes the key itself to name the binding, so it is encoded twice.
        name = quote(quote(routing_key, safe=""), safe="") or "~"
        await self._send("DELETE", f"bindings/{self._vhost}/{ends}/{name}")

    async def delete(self, kind: str, name: str) -> None:
        """Deletes one of the vhost's "exchanges", "queues" or "policies"."""
        await self._send("DELETE", f"{kind}/{self._vhost}/{quote(name, safe='')}")

    async def set_policy(
        self, name: str, *, pattern: str, apply_to: str, priority: int, definition: Json
    ) -> None:
        """Creates or replaces a policy."""
        await self._send(
            "PUT",
            f"policies/{self._vhost}/{quote(name, safe='')}",
            {
                "pattern": pattern,
                "apply-to": apply_to,
                "priority": priority,
                "definition": definition,
            },
        )

    async def create_vhost(self, name: str) -> None:
        """Creates a vhost in which this login may do everything. For tests and demonstrations."""
        vhost = quote(name, safe="")
        await self._send("PUT", f"vhosts/{vhost}", {})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        await self._send("PUT", f"permissions/{vhost}/{quote(self.user, safe='')}", everything)

    async def delete_vhost(self, name: str) -> None:
        """Deletes a vhost and everything in it. A vhost that does not exist is no error."""
        if any(vhost["name"] == name for vhost in await self.vhosts()):
            await self._send("DELETE", f"vhosts/{quote(name, safe='')}")

    async def _get(self, path: str) -> Any:
        return (await self._send("GET", path)).json()

    async def _find(self, paths: Iterable[str]) -> list[Json]:
        """What is at the paths, without those at which there is nothing."""
        found = await asyncio.gather(*(self._ask("GET", path) for path in paths))
        there = [response for response in found if response.status_code != _NOTHING_THERE]
        for response in there:
            if not response.is_success:
                raise self._refusal(response)
        return [response.json() for response in there]

    async def _send(self, method: str, path: str, body: Json | None = None) -> httpx.Response:
        response = await self._ask(method, path, body)
        if response.is_success:
            return response
        raise self._refusal(response)

    async def _ask(self, method: str, path: str, body: Json | None = None) -> httpx.Response:
        try:
            return await self.http.request(method, path, json=body)
        except (httpx.HTTPError, OSError) as error:
            raise BrokerAway(
                f"RabbitMQ's management API at {self._places} can't be reached"
                f" ({type(error).__name__})",
                "start it, or correct INGEST_MANAGEMENT_URL.",
            ) from None

    def _refusal(self, response: httpx.Response) -> BrokerAway | TopologyError:
        where = f"RabbitMQ's management API at {self._places}"
        match response.status_code:
            case 401:
                return TopologyError(
                    f"{where} refuses user {self.user!r}",
                    "correct the login, or give the user"
                    " the tag 'monitoring' (to check) or 'administrator' (to apply).",
                )
            case 403:
                return TopologyError(
                    f"{where} denies user {self.user!r} what was asked in vhost {self.vhost!r}",
                    "use a login with permissions there and the tag 'policymaker'.",
                )
            case 404:
                asked = unquote(response.request.url.path)
                return TopologyError(
                    f"{where} finds nothing at {asked}",
                    f"create vhost {self.vhost!r} and run"
                    " `study-ingest topology`, or correct INGEST_AMQP_URL.",
                )
            case status if status >= 500:
                return BrokerAway(
                    f"{where} answers {status}",
                    "wait, or look at the broker's log.",
                )
            case status:
                return TopologyError(
                    f"{where} answers {status}: {_reason(response)}", "look at the broker's log."
                )


def _reason(response: httpx.Response) -> str:
    try:
        said = response.json()
        text = str(said.get("reason") or said.get("error"))
    except (ValueError, AttributeError):
        text = response.reason_phrase
    return " ".join(text.split())[:_DETAIL_MAX].rstrip(".")
