"""Structured logs: one JSON object on each line in a pipe, readable columns on a terminal.

Events have stable names (`delivery.settled`, `consumer.paused`). They never contain a message's
body.
"""

import json
import logging
import sys
from collections.abc import Mapping
from io import TextIOBase
from typing import Final, TextIO, cast

import structlog
from structlog.typing import Processor

from worker.settings import Settings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class _StandardError(TextIOBase):
    """The `sys.stderr` of the moment of each write, because loggers live longer than a
    redirection.
    """

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


_JSON: Final = json.JSONEncoder(default=repr)
"""Created once, because `json.dumps` creates one for each line."""


def _as_json(event: Mapping[str, object], **_: object) -> str:
    return _JSON.encode(event)


def configure(settings: Settings) -> None:
    """Sends all events, including those of libraries, to standard error."""
    as_json = settings.log_format == "json" or (
        settings.log_format == "auto" and not sys.stderr.isatty()
    )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info
        if as_json
        else structlog.processors.StackInfoRenderer(),
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer(_as_json) if as_json else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.log_level]),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _StandardError())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(_StandardError())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("httpx").setLevel(logging.ERROR)
    # The client logs every attempt to reconnect as an error. The worker logs the loss once.
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # asyncio warns about each write to a closed socket, once for every message in flight.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
