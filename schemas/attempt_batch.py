"""The message *attempt batch*, version 1: its model, its decoder and its content digest.

It turns bytes into an `AttemptBatch`, or says in one sentence why that is not possible.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Final, NamedTuple, NoReturn
from uuid import UUID

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    WithJsonSchema,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError, to_json

from .errors import Rejection
from .model import WireModel
from .times import digest_time, in_utc, read_time, usual_times
from .words import RejectReason

MAX_BODY_BYTES: Final = 1_048_576
MAX_ATTEMPTS: Final = 1_000

_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1
_DURATION_MS_MAX: Final = 24 * 60 * 60 * 1000
_ERRORS_SHOWN = 3
_JSON_WORDS: Final = {
    "dataclass_type": "should be an object",
    "too_short": "should have at least 1 item",
    "tuple_type": "should be an array",
}
"""Replaces texts of pydantic that use Python's words."""

_UUID: Final = r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_NIL_OR_MAX: Final = r"0{8}(-0{4}){3}-0{12}|[Ff]{8}(-[Ff]{4}){3}-[Ff]{12}"
"""The uuids that a broken generator makes. They can't identify a session, because everybody has
them.
"""


def can_identify(uuid: UUID | str) -> bool:
    """Whether a uuid can be that of a session."""
    return re.fullmatch(_NIL_OR_MAX, str(uuid)) is None


def _spelled_as_uuid(value: object) -> object:
    # There is one spelling on the wire. Pydantic's own message would repeat what was sent.
    text = str(value) if isinstance(value, UUID) else value
    if not isinstance(text, str) or re.fullmatch(_UUID, text) is None:
        raise PydanticCustomError("uuid_spelling", "should be a UUID of 36 characters")
    if not can_identify(text):
        raise PydanticCustomError("uuid_unused", "should be a UUID that was made for this session")
    return value


WireUuid = Annotated[
    UUID,
    BeforeValidator(_spelled_as_uuid),
    # The lengths repeat it, for readers whose `$` allows a newline.
    WithJsonSchema(
        {
            "type": "string",
            "format": "uuid",
            "pattern": f"^{_UUID}$",
            "not": {"pattern": f"^({_NIL_OR_MAX})$"},
            "minLength": 36,
            "maxLength": 36,
        }
    ),
]
"""A UUID in JSON: 32 hexadecimal digits in any case, and four hyphens."""


class SentTimes(NamedTuple):
    """The times of a batch's attempts, in the order of the attempts. None if an attempt has no
    time.
    """

    at: Sequence[datetime | None]
    """The times in UTC, as `read_time` reads them."""
    utc_offsets: Sequence[int | None]
    """The offset in minutes with which each was sent. None if it had no offset."""
    digested: Sequence[datetime | None]
    """The times in UTC, as `digest_time` reads them."""


# Not a model like the others, because a dataclass is faster, and a batch contains many of them.
@dataclass(
    frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="ignore", title="Attempt")
)
class Attempt:
    """One answered (or skipped) question of a session."""

    question_pub_id: Annotated[
        str,
        # PostgreSQL's text can't hold U+0000.
        Field(min_length=1, max_length=128, pattern=r"^[^\x00]*$", strict=True),
    ] = Field(description="The published id of the question. Viewers do not interpret it.")
    selected_choice: Annotated[StrictInt, Field(ge=_INT32_MIN, le=_INT32_MAX)] | None = Field(
        default=None, description="The selected choice, or null if none was selected."
    )
    is_unsure: StrictBool = Field(
        default=False,
        description="Whether the user said 'not sure'. It takes precedence over a selection.",
    )
    answered_at: Annotated[str, Field(strict=True)] | None = Field(
        default=None,
        description=(
            "RFC 3339, by the viewer's clock; without an offset it is UTC. A time that is missing, "
            "can't be read, lies in the future or too far in the past is replaced: by that of the "
            "nearest attempt of the batch with a credible one, else by the time of ingest."
        ),
        examples=["2026-03-01T09:30:00.250Z"],
    )
    duration_ms: Annotated[StrictInt, Field(ge=0, le=_DURATION_MS_MAX)] | None = Field(
        default=None,
        description="How long the answer took, in milliseconds, by the viewer's clock. Since 1.1.",
        examples=[4200],
    )

    def sent_at(self) -> datetime | None:
        """`answered_at` as a time in UTC. None if it is null or not readable."""
        read = None if self.answered_at is None else read_time(self.answered_at)
        return None if read is None else read[0]


class AttemptBatch(WireModel):
    """One local session of a viewer. This is the unit that is ingested exactly once."""

    model_config = ConfigDict(
        title="AttemptBatch", json_schema_extra={"$id": "urn:study-ingest:attempt-batch:v1"}
    )

    client_session_uuid: WireUuid = Field(
        description="The idempotency key. The viewer makes it once for each local session."
    )
    attempts: Annotated[
        tuple[Attempt, ...],
        Field(min_length=1, json_schema_extra={"maxItems": MAX_ATTEMPTS}),
    ] = Field(description="The attempts, in the order in which they were answered.")

    @cached_property
    def sent_times(self) -> SentTimes:
        """The times of the attempts, read once."""
        texts = [attempt.answered_at for attempt in self.attempts]
        usual = usual_times(texts)
        if usual is not None:
            if all(at.tzinfo is UTC for at in usual):
                return SentTimes(usual, [0] * len(usual), usual)
            if (read := in_utc(usual)) is not None:
                at = [at for at, _ in read]
                return SentTimes(at, [offset for _, offset in read], at)
        each = [(None, None) if text is None else read_time(text) or (None, None) for text in texts]
        return SentTimes(
            [at for at, _ in each],
            [offset for _, offset in each],
            [None if text is None else digest_time(text) for text in texts],
        )

    def digest(self) -> bytes:
        """The SHA-256 (32 bytes) of the content as the worker understands it.

        Two bodies that mean the same have the same digest. The spelling of times and numbers, the
        order of keys, unknown fields and absent defaults make no difference.
        """
        content = [
            [attempt.question_pub_id, attempt.selected_choice, attempt.is_unsure, at]
            for attempt, at in zip(self.attempts, _texts(self.sent_times.digested), strict=True)
        ]
        text = _COMPACT.encode([str(self.client_session_uuid), content])
        return hashlib.sha256(text.encode()).digest()


def decode(
    body: bytes, *, max_body_bytes: int = MAX_BODY_BYTES, max_attempts: int = MAX_ATTEMPTS
) -> AttemptBatch:
    """Reads one message body.

    Raises `Rejection` with `too_large` (more than `max_body_bytes` bytes or `max_attempts`
    attempts) or `malformed` (everything else that is not an attempt batch).
    """
    if len(body) > max_body_bytes:
        raise Rejection(
            RejectReason.TOO_LARGE,
            f"The body has {len(body)} bytes, and the limit is {max_body_bytes}: send the"
            " session in smaller batches.",
        )
    document = _parse(body)
    if not isinstance(document, dict):
        _malformed("The body is not a JSON object")
    attempts = document.get("attempts")
    if isinstance(attempts, list) and len(attempts) > max_attempts:
        raise Rejection(
            RejectReason.TOO_LARGE,
            f"The batch has {len(attempts)} attempts, and the limit is {max_attempts}: send the"
            " session in smaller batches.",
        )
    try:
        return AttemptBatch.model_validate(document)
    except ValidationError as error:
        _malformed(_sentence(error))


def _texts(times: Sequence[datetime | None]) -> list[str | None]:
    """`isoformat()` of times in UTC, in a third of the time: all of them at once."""
    written = to_json(times).decode()[1:-1].replace("Z", "+00:00").split(",")
    return [None if text == "null" else text[1:-1] for text in written]


def _parse(body: bytes) -> Any:
    try:
        return _STRICT.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        _malformed(f"The body is not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        _malformed(f"The body is not JSON at line {error.lineno}, column {error.colno}")
    except RecursionError:
        _malformed("The body is nested too deeply")
    except ValueError:
        # int() refuses more than 4,300 digits.
        _malformed("The body holds a number with too many digits")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        _malformed("The body has the same key twice in one object")
    return members


def _number(text: str) -> int | float:
    # JSON has one kind of number: 1.0 is the integer 1 (JSON Schema says so too).
    value = float(text)
    return int(value) if value.is_integer() and abs(value) <= _INT32_MAX + 1 else value


def _constant(name: str) -> NoReturn:
    _malformed(f"The body holds {name}, which is not JSON")


# Created once, because json.loads and json.dumps create one for each call with such arguments.
_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_number, parse_constant=_constant
)
_COMPACT: Final = json.JSONEncoder(separators=(",", ":"))


def _sentence(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if any(len(problem["loc"]) > 1 for problem in problems):
        # If there are wrong attempts, do not report missing ones as well.
        problems = [problem for problem in problems if problem["type"] != "too_short"]
    shown = "; ".join(
        f"{'.'.join(str(step) for step in problem['loc']) or 'body'}: "
        + _JSON_WORDS.get(problem["type"], problem["msg"].lower())
        for problem in problems[:_ERRORS_SHOWN]
    )
    more = len(problems) - _ERRORS_SHOWN
    return f"The body is not an attempt batch: {shown}" + (f"; and {more} more" if more > 0 else "")


def _malformed(sentence: str) -> NoReturn:
    raise Rejection(RejectReason.MALFORMED, f"{sentence}.") from None
