"""The published documents: a JSON Schema for each message, and AsyncAPI for how they travel.

Pure: it creates values from the models and the names in `amqp.py`, and writes nothing. With these
documents anybody can write a viewer in any language.
"""

import json
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from . import amqp
from .attempt_batch import MAX_ATTEMPTS, MAX_BODY_BYTES, AttemptBatch
from .checks import MAX_CHECKED, Check, Checked, Recall
from .examples import (
    BATCH,
    CHECK,
    CHECKED,
    HEADERS,
    INGESTED,
    PROGRESS_MARK,
    PROGRESS_PAGE,
    PROGRESS_REFUSAL,
    PROGRESS_REQUEST,
    RECALL,
    REJECTED,
)
from .followups import KINDS, Kind
from .ingest_result import IngestResult
from .progress import (
    MAX_REQUEST_BYTES,
    ProgressMark,
    ProgressPage,
    ProgressRefusal,
    ProgressRequest,
)
from .words import RefusalReason, RejectReason, SkipReason

Json = dict[str, Any]

ASYNCAPI: Final = "asyncapi.json"
ATTEMPT_BATCH: Final = "attempt_batch.v1.json"
INGEST_RESULT: Final = "ingest_result.v1.json"
PROGRESS_REQUEST_SCHEMA: Final = "progress_request.v1.json"
PROGRESS_PAGE_SCHEMA: Final = "progress_page.v1.json"
PROGRESS_REFUSAL_SCHEMA: Final = "progress_refusal.v1.json"
PROGRESS_NUDGE_SCHEMA: Final = "progress_nudge.v1.json"
CHECK_SCHEMA: Final = "check.v1.json"
CHECKED_SCHEMA: Final = "checked.v1.json"
RECALL_SCHEMA: Final = "recall.v1.json"

_AMQP_BINDING: Final = "0.3.0"
_TRACEPARENT: Final = "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"


def documents() -> dict[str, str]:
    """All published documents: the file name and the whole text of each, the same on each call."""
    return {
        **{name: _text(json_schema(model, _mode_of(model))) for name, model in _models().items()},
        ASYNCAPI: _text(asyncapi()),
    }


def json_schema(model: type[BaseModel], mode: Literal["validation", "serialization"]) -> Json:
    """The JSON Schema (2020-12) of a message, to be read or (serialization) as it is written."""
    schema = model.model_json_schema(mode=mode, schema_generator=_Plain)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


def asyncapi() -> Json:
    """The AsyncAPI 3.0 document from the point of view of the ingest worker, which receives
    batches.
    """
    return {
        "asyncapi": "3.0.0",
        "id": "urn:study-ingest",
        "info": {
            "title": "study-ingest",
            "version": "1.0.0",
            "description": (
                "Viewers publish attempt batches and receive results, and ask for their users'"
                " progress. Services receive follow-up"
                " jobs. Everything is delivered at least once: a batch has its effect once for each"
                " client_session_uuid, a result may arrive again, and a repeated follow-up job has"
                " the same message_id. Ignore unknown fields."
            ),
        },
        "defaultContentType": amqp.CONTENT_TYPE,
        "servers": {"broker": _SERVER},
        "channels": {
            "attempts": _sent_to(
                amqp.INGEST_EXCHANGE,
                amqp.attempts_key("VIEWER").replace("VIEWER", "{viewer}"),
                "attemptBatch",
                f"Viewers publish here. The queue {amqp.ATTEMPTS_QUEUE} is bound to it with"
                f" {amqp.ATTEMPTS_BINDING}. Viewers neither declare nor read that queue.",
            ),
            "attemptsQueue": _queue(
                amqp.ATTEMPTS_QUEUE, "attemptBatch", "Any number of workers consume from it."
            ),
            "results": _sent_to(
                amqp.RESULTS_EXCHANGE,
                amqp.result_key("VIEWER").replace("VIEWER", "{viewer}"),
                _RESULT_MESSAGES,
                "Workers publish results here, each for one viewer, and what viewers need to know"
                " after the server has lost data.",
            ),
            "resultsQueue": _queue(
                amqp.results_queue("VIEWER").replace("VIEWER", "{viewer}"),
                _RESULT_MESSAGES,
                "One durable queue for each viewer, without arguments. The operator's `study-ingest"
                f" viewer add` declares it and binds it to {amqp.RESULTS_EXCHANGE} with the routing"
                " key result.{viewer}. A viewer only consumes it: its login may declare and bind"
                " nothing (403). Consume before the first publish. A result without a queue is"
                " dropped, and sent again when the batch is published again.",
            ),
            "progressRequests": _sent_to(
                amqp.INGEST_EXCHANGE,
                amqp.progress_request_key("VIEWER").replace("VIEWER", "{viewer}"),
                _REQUEST_MESSAGES,
                f"Viewers ask here. The queue {amqp.PROGRESS_QUEUE} is bound to it with"
                f" {amqp.PROGRESS_REQUESTS_BINDING}.",
            ),
            "progressRequestsQueue": _queue(
                amqp.PROGRESS_QUEUE,
                _REQUEST_MESSAGES,
                "Any number of workers consume from it. A request lives a minute at most, and may"
                " be lost.",
            ),
            "progress": _sent_to(
                amqp.RESULTS_EXCHANGE,
                amqp.progress_key("VIEWER").replace("VIEWER", "{viewer}"),
                _PROGRESS_MESSAGES,
                "Workers publish pages, refusals and nudges here, each for one viewer.",
            ),
            "progressQueue": _queue(
                amqp.progress_queue("VIEWER").replace("VIEWER", "{viewer}"),
                _PROGRESS_MESSAGES,
                "One durable queue for each viewer, without arguments. `study-ingest viewer add`"
                f" and `viewer upgrade` declare it and bind it to {amqp.RESULTS_EXCHANGE} with the"
                " routing key progress.{viewer}. A policy bounds it, and drops the oldest messages"
                " first. A message lives a minute at most.",
            ),
            **{
                _channel_of(kind): _sent_to(
                    amqp.FOLLOWUPS_EXCHANGE,
                    kind.routing_key,
                    _channel_of(kind),
                    f"{kind.how_often} Kept in the durable queue"
                    f" {amqp.followups_queue(kind.routing_key)}.",
                )
                for kind in KINDS
            },
        },
        "operations": {
            "ingest": {
                "action": "receive",
                "channel": _ref("channels/attemptsQueue"),
                "summary": "Ingest each batch exactly once, however often it arrives.",
                "description": "A worker acknowledges a batch after the commit of its effect, or"
                " after a rejected batch is stored as a dead letter.",
                "bindings": {"amqp": {"ack": True, "bindingVersion": _AMQP_BINDING}},
            },
            "acceptBatch": {
                "action": "receive",
                "channel": _ref("channels/attempts"),
                "summary": "A viewer publishes a batch.",
                "description": _PUBLISHING,
                "bindings": {"amqp": _publish(user_id="{viewer}")},
            },
            "tellResult": {
                "action": "send",
                "channel": _ref("channels/results"),
                "summary": "Send a viewer the result of its batch.",
                "bindings": {"amqp": _publish()},
            },
            "deliverResult": {
                "action": "send",
                "channel": _ref("channels/resultsQueue"),
                "summary": "A viewer consumes its results.",
                "description": "Acknowledge a result after it is stored. Also acknowledge one"
                " that is unknown or not readable. The status ingested wins over rejected, in"
                " whatever order they arrive. Of two ingests the later wins. For a rejected batch,"
                " x-reasons of the message says what to do. Workers write every uuid in lower"
                " case: compare without regard to case.",
                "bindings": {"amqp": {"ack": True, "bindingVersion": _AMQP_BINDING}},
            },
            "acceptRequest": {
                "action": "receive",
                "channel": _ref("channels/progressRequests"),
                "summary": "A viewer asks what has changed in one user's progress, or which of its"
                " batches the server has.",
                "description": "For progress: ask when connected, when a mark is newer than the"
                " viewer's version, when a page says so, after 10 seconds (then more) without an"
                " expected page, and every 15 minutes. One request for a user at a time. For"
                f" batches: ask when the epoch in the header {amqp.EPOCH_HEADER} is another than"
                " before, and when recalled.",
                "bindings": {"amqp": _publish(user_id="{viewer}", persistent=False)},
            },
            "answerRequest": {
                "action": "receive",
                "channel": _ref("channels/progressRequestsQueue"),
                "summary": "Answer with pages, or with a refusal. A check is answered where"
                " results go.",
                "bindings": {"amqp": {"ack": True, "bindingVersion": _AMQP_BINDING}},
            },
            "tellProgress": {
                "action": "send",
                "channel": _ref("channels/progress"),
                "summary": "Send a viewer pages, a refusal or a nudge.",
                "bindings": {"amqp": _publish(persistent=False)},
            },
            "deliverProgress": {
                "action": "send",
                "channel": _ref("channels/progressQueue"),
                "summary": "A viewer consumes its pages, refusals and nudges.",
                "description": "Apply a page only if its `since` is the viewer's cursor for that"
                " user, where null is a cursor too. Ignore any other page. Acknowledge all.",
                "bindings": {"amqp": {"ack": True, "bindingVersion": _AMQP_BINDING}},
            },
            **{
                f"request{_noun_of(kind)}": {
                    "action": "send",
                    "channel": _ref(f"channels/{_channel_of(kind)}"),
                    "summary": kind.summary,
                    "bindings": {"amqp": _publish()},
                }
                for kind in KINDS
            },
        },
        "components": {
            "messages": {
                "attemptBatch": _message(
                    amqp.ATTEMPT_BATCH_TYPE,
                    ATTEMPT_BATCH,
                    "One local session of a viewer",
                    f"At most {MAX_ATTEMPTS} attempts and {MAX_BODY_BYTES} bytes, unless the"
                    " operator has changed the limits. A later minor version is"
                    f" {amqp.ATTEMPT_BATCH_TYPE}.1 and so on. A newer major version waits for a"
                    " worker that knows it.",
                    message_id="New for each publish, even of the same batch. The identity of a"
                    " batch is its client_session_uuid.",
                    examples={"batch": BATCH},
                    needs=("user_id",),
                    more={
                        "app_id": {
                            "type": "string",
                            "description": "The program and its version. Operators see it.",
                        },
                        "user_id": {
                            "type": "string",
                            "description": "The viewer's broker login, which is its name. The"
                            " broker refuses any other, and workers reject a batch without it"
                            " unless their operator has switched that off.",
                        },
                    },
                ),
                "ingestResult": _message(
                    amqp.INGEST_RESULT_TYPE,
                    INGEST_RESULT,
                    "The result of an attempt batch",
                    "Skipped attempts have one of the reasons "
                    + ", ".join(SkipReason)
                    + "; a rejected batch one of "
                    + ", ".join(RejectReason)
                    + ". A newer worker may send other words.",
                    message_id="The same if the same result is sent again.",
                    examples={"ingested": INGESTED, "rejected": REJECTED},
                    reasons={
                        "rejected": {str(reason): reason.advice for reason in RejectReason},
                        "skipped": {str(reason): reason.advice for reason in SkipReason},
                    },
                ),
                "progressRequest": _message(
                    amqp.PROGRESS_REQUEST_TYPE,
                    PROGRESS_REQUEST_SCHEMA,
                    "Asks what has changed in one user's progress since a cursor",
                    f"At most {MAX_REQUEST_BYTES} bytes.",
                    message_id="New for each request.",
                    examples={"request": PROGRESS_REQUEST},
                    persistent=False,
                    needs=("user_id",),
                    more=_LOGIN,
                ),
                "progressPage": _message(
                    amqp.PROGRESS_PAGE_TYPE,
                    PROGRESS_PAGE_SCHEMA,
                    "A part of what has changed in one user's progress",
                    "It takes a viewer from the cursor `since` to `cursor`.",
                    message_id="New for each page.",
                    examples={"page": PROGRESS_PAGE},
                    persistent=False,
                    more=_ANSWERS,
                ),
                "progressRefusal": _message(
                    amqp.PROGRESS_REFUSAL_TYPE,
                    PROGRESS_REFUSAL_SCHEMA,
                    "A request that was refused",
                    "With one of the reasons "
                    + ", ".join(RefusalReason)
                    + ". A newer worker may send other words.",
                    message_id="New for each refusal.",
                    examples={"refusal": PROGRESS_REFUSAL},
                    reasons={str(reason): reason.advice for reason in RefusalReason},
                    persistent=False,
                    more=_ANSWERS,
                ),
                "check": _message(
                    amqp.CHECK_TYPE,
                    CHECK_SCHEMA,
                    "Asks which of the viewer's batches the server has",
                    f"At most {MAX_CHECKED} batches. An older worker refuses it.",
                    message_id="New for each check.",
                    examples={"check": CHECK},
                    persistent=False,
                    needs=("user_id",),
                    more=_LOGIN,
                ),
                "checked": _message(
                    amqp.CHECKED_TYPE,
                    CHECKED_SCHEMA,
                    "Which batches of a check the server has",
                    "Publish the missing ones again, if the epoch is that of the last message.",
                    message_id="New for each answer.",
                    examples={"checked": CHECKED},
                    persistent=False,
                    more=_ANSWERS,
                ),
                "recall": _message(
                    amqp.RECALL_TYPE,
                    RECALL_SCHEMA,
                    "Asks the viewer to check its batches since a moment",
                    "An operator has restored a backup. A viewer that does not know this message"
                    " acknowledges and ignores it.",
                    message_id="The same if the same recall is sent again.",
                    examples={"recall": RECALL},
                ),
                "progressNudge": _message(
                    amqp.PROGRESS_NUDGE_TYPE,
                    PROGRESS_NUDGE_SCHEMA,
                    "A user's progress has changed",
                    "Ask if the viewer's version is lower, or of another epoch. It lives a few"
                    " seconds.",
                    message_id="New for each nudge.",
                    examples={"nudge": PROGRESS_MARK},
                    persistent=False,
                    more={"expiration": _EXPIRATION},
                ),
                **{
                    _channel_of(kind): _message(
                        kind.message_type,
                        _schema_of(kind),
                        f"{_noun_of(kind)} requested",
                        "A job for another service.",
                        message_id="The same if the same job is sent again.",
                    )
                    for kind in KINDS
                },
            },
            "schemas": _schemas(),
            "securitySchemes": {
                "login": {
                    "type": "userPassword",
                    "description": "The viewer's login and password, as `study-ingest viewer add`"
                    " prints them once: AMQP's mechanism PLAIN. The login may publish to"
                    f" {amqp.INGEST_EXCHANGE} under attempts.v1.{{viewer}} and"
                    " progress.v1.{viewer}, read study.results.{viewer} and"
                    " study.progress.{viewer}, and nothing else.",
                }
            },
            "parameters": {
                "viewer": {
                    "description": "The viewer's name, which is its broker login. It matches"
                    f" {amqp.VIEWER_PATTERN}. It belongs to one outbox only, because results are"
                    " routed by it.",
                    "examples": ["phone-3f2a"],
                }
            },
        },
    }


_SERVER: Final[Json] = {
    "host": "{host}:{port}",
    "pathname": "/{vhost}",
    "protocol": "{protocol}",
    "protocolVersion": "0.9.1",
    "description": "RabbitMQ. Set a heartbeat of some 10 seconds. Reconnect after growing delays,"
    " at most a minute.",
    "variables": {
        "host": {"description": "As the operator says."},
        "port": {"default": "5671", "description": "5672 without TLS."},
        "protocol": {
            "enum": ["amqps", "amqp"],
            "default": "amqps",
            "description": "With amqps, verify the server's certificate and name. Use amqp on one"
            " machine only: the password would be readable on the network.",
        },
        "vhost": {"default": "/", "description": "As the operator says. In a URL, / is %2F."},
    },
    "security": [{"$ref": "#/components/securitySchemes/login"}],
}

_PUBLISHING: Final = (
    "Publish with publisher confirms, persistent and mandatory, one batch after another in the"
    " order in which they were recorded. The broker has the batch only after a basic.ack without a"
    " preceding basic.return. After a basic.return (no queue is bound) or a basic.nack (the queue"
    " is full), keep the batch and try again after growing delays. If there is no answer, or the"
    " connection is lost, the outcome is unknown: publish the batch again, on a new channel. If a"
    " batch has no result 15 minutes after its confirm, publish it again, and double that time"
    " each time. The worker then sends the first result again."
)


_ABOUT_A_SESSION: Final = (ATTEMPT_BATCH, INGEST_RESULT)
_RESULT_MESSAGES: Final = ("ingestResult", "checked", "recall")
_REQUEST_MESSAGES: Final = ("progressRequest", "check")
_PROGRESS_MESSAGES: Final = ("progressPage", "progressRefusal", "progressNudge")

_LOGIN: Final[Json] = {
    "user_id": {"type": "string", "description": "The viewer's broker login, as for a batch."}
}
_EXPIRATION: Final[Json] = {
    "type": "string",
    "description": "Milliseconds after which the broker drops the message.",
}
_ANSWERS: Final[Json] = {
    "correlation_id": {
        "type": "string",
        "description": "The message_id of the request, if it had one.",
    },
    "expiration": _EXPIRATION,
}


def _noun_of(kind: Kind) -> str:
    return kind.routing_key.partition(".")[0].capitalize()


def _channel_of(kind: Kind) -> str:
    noun, _, participle = kind.routing_key.partition(".")
    return noun + participle.capitalize()


def _schema_of(kind: Kind) -> str:
    return f"{kind.routing_key.replace('.', '_')}.v1.json"


class _Plain(GenerateJsonSchema):
    """Omits the titles that pydantic makes from the names of fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _sent_to(
    exchange: str, routing_key: str, message: str | tuple[str, ...], description: str
) -> Json:
    return _with_viewer(
        {
            "address": routing_key,
            "description": description,
            "messages": _messages(message),
            "bindings": {
                "amqp": {
                    "is": "routingKey",
                    "exchange": {
                        "name": exchange,
                        "type": "topic",
                        "durable": True,
                        "autoDelete": False,
                    },
                    "bindingVersion": _AMQP_BINDING,
                }
            },
        }
    )


def _queue(name: str, message: str | tuple[str, ...], description: str) -> Json:
    return _with_viewer(
        {
            "address": name,
            "description": description,
            "messages": _messages(message),
            "bindings": {
                "amqp": {
                    "is": "queue",
                    "queue": {
                        "name": name,
                        "durable": True,
                        "exclusive": False,
                        "autoDelete": False,
                    },
                    "bindingVersion": _AMQP_BINDING,
                }
            },
        }
    )


def _messages(names: str | tuple[str, ...]) -> Json:
    names = (names,) if isinstance(names, str) else names
    return {name: _ref(f"components/messages/{name}") for name in names}


def _with_viewer(channel: Json) -> Json:
    if "{viewer}" in channel["address"]:
        channel["parameters"] = {"viewer": _ref("components/parameters/viewer")}
    return channel


def _publish(user_id: str | None = None, *, persistent: bool = True) -> Json:
    binding: Json = {
        "deliveryMode": 2 if persistent else 1,
        "mandatory": True,
        "timestamp": True,
        "bindingVersion": _AMQP_BINDING,
    }
    return binding if user_id is None else {"userId": user_id, **binding}


def _message(
    message_type: str,
    schema_file: str,
    title: str,
    description: str,
    *,
    message_id: str,
    examples: Json | None = None,
    reasons: Json | None = None,
    persistent: bool = True,
    needs: tuple[str, ...] = (),
    more: Json | None = None,
) -> Json:
    about_session = schema_file in _ABOUT_A_SESSION
    message: Json = {
        "name": message_type,
        "title": title,
        "description": description,
        "contentType": amqp.CONTENT_TYPE,
        # In the document itself and by name, so that generators of models keep both the names and
        # what is required.
        "payload": _ref(f"components/schemas/{_models()[schema_file].__name__}"),
        "headers": _headers(schema_file, persistent=persistent),
        "bindings": {"amqp": {"messageType": message_type, "bindingVersion": _AMQP_BINDING}},
        # AsyncAPI has no place for these properties of an AMQP message.
        "x-amqp-properties": {
            "type": "object",
            "required": [
                *("content_type", "delivery_mode", "message_id", "timestamp", "type"),
                *needs,
            ],
            "properties": {
                "content_type": {"const": amqp.CONTENT_TYPE},
                "delivery_mode": (
                    {"const": 2, "description": "Persistent."}
                    if persistent
                    else {"const": 1, "description": "Not persistent."}
                ),
                "message_id": {"type": "string", "description": message_id},
                "timestamp": {
                    "type": "integer",
                    "description": "The time of publishing, in seconds since 1970.",
                },
                "type": {"const": message_type},
                **(more or {}),
            },
        },
    }
    if examples:
        message["examples"] = [
            {"name": name, **({"headers": HEADERS} if about_session else {}), "payload": payload}
            for name, payload in examples.items()
        ]
    if reasons:
        message["x-reasons"] = reasons
    return message


def _models() -> dict[str, type[BaseModel]]:
    """The model of each message, by the file of its schema."""
    return {
        ATTEMPT_BATCH: AttemptBatch,
        INGEST_RESULT: IngestResult,
        PROGRESS_REQUEST_SCHEMA: ProgressRequest,
        PROGRESS_PAGE_SCHEMA: ProgressPage,
        PROGRESS_REFUSAL_SCHEMA: ProgressRefusal,
        PROGRESS_NUDGE_SCHEMA: ProgressMark,
        CHECK_SCHEMA: Check,
        CHECKED_SCHEMA: Checked,
        RECALL_SCHEMA: Recall,
        **{_schema_of(kind): kind.model for kind in KINDS},
    }


def _mode_of(model: type[BaseModel]) -> Literal["validation", "serialization"]:
    """What viewers send, as it may be sent; everything else as it is sent."""
    return "validation" if model in (AttemptBatch, ProgressRequest, Check) else "serialization"


def _schemas() -> Json:
    """All models by name, each with everything that it is made of."""
    _, found = models_json_schema(
        [(model, _mode_of(model)) for model in _models().values()],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Plain,
    )
    schemas: Json = found["$defs"]
    for schema in schemas.values():
        schema.pop("$id", None)
    return schemas


def _headers(schema_file: str, *, persistent: bool) -> Json:
    known: Json = {
        amqp.TRACEPARENT_HEADER: {
            "type": "string",
            "pattern": _TRACEPARENT,
            "description": "W3C trace context, passed on from the batch to what it causes.",
        }
    }
    if persistent and schema_file != ATTEMPT_BATCH:  # what leaves the outbox
        known[amqp.EPOCH_HEADER] = {
            "type": "string",
            "description": "The epoch of the server that had the message when it was published."
            " Older workers do not send it.",
        }
    if schema_file not in _ABOUT_A_SESSION:
        return {"type": "object", "properties": known}
    session = {
        amqp.CLIENT_SESSION_UUID_HEADER: {
            "type": "string",
            "format": "uuid",
            "description": "The uuid of the session, so that it is readable without the body.",
        }
    }
    if schema_file == ATTEMPT_BATCH:
        known[amqp.PRINCIPAL_HEADER] = {
            "type": ["string", "integer"],
            "description": "The user for whom a viewer with several grants sends answers to shared"
            " questions: one of those that it is granted.",
        }
    return {"type": "object", "required": list(session), "properties": session | known}


def _ref(path: str) -> Json:
    return {"$ref": f"#/{path}"}


def _text(document: Json) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
