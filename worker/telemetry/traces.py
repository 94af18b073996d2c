"""Traces, by OpenTelemetry's conventions: one span for each delivery, and one for its transaction.

The span of a delivery continues the viewer's `traceparent`. The transaction stores the
`traceparent` of that span in the outbox, which carries it to the result and the follow-up jobs.
Traces cost nothing until `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final
from uuid import UUID

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from schemas import amqp

_PROPAGATOR = TraceContextTextMapPropagator()
_LAST_EXPORT: Final = 2.0
"""Seconds for exporting the last spans when the process ends."""
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@contextmanager
def exported() -> Iterator[None]:
    """Exports spans while the block runs, if the environment names a collector."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        yield
        return
    # Imported here, because importing the exporter takes a third of a second.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(
        resource=Resource.create({"service.name": "study-ingest"}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        # On a thread that may outlive the block, because the exporter tries an unreachable
        # collector for 10 seconds, which is a third of a worker's grace period.
        last = threading.Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(_LAST_EXPORT)


@contextmanager
def delivered(group: Sequence[tuple[UUID | None, str | None]]) -> Iterator[list[str | None] | None]:
    """Creates spans for the deliveries, and for the transaction that links them, while the block
    runs.

    `group` has the uuid and the `traceparent` of each delivery. Yields the `traceparent` of each
    delivery's own span, which is the parent of everything that the delivery causes, or None if
    traces are not exported.
    """
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        yield None
        return
    tracer = provider.get_tracer("study-ingest")
    with ExitStack() as open_spans:
        spans: list[Span] = []
        traced: list[str | None] = []
        for uuid, parent in group:
            span = tracer.start_span(
                f"process {amqp.ATTEMPTS_QUEUE}",
                context=_context(parent),
                kind=SpanKind.CONSUMER,
                attributes={
                    "messaging.system": "rabbitmq",
                    "messaging.operation.type": "process",
                    "messaging.destination.name": amqp.ATTEMPTS_QUEUE,
                    "messaging.batch.message_count": len(group),
                    "study.client_session_uuid": str(uuid),
                },
            )
            open_spans.callback(span.end)
            spans.append(span)
            traced.append(_traceparent(span))
        with tracer.start_as_current_span(
            "ingest",
            context=Context(),
            kind=SpanKind.INTERNAL,
            links=[Link(span.get_span_context()) for span in spans],
        ):
            yield traced


def _context(traceparent: str | None) -> Context:
    carrier = {} if traceparent is None else {amqp.TRACEPARENT_HEADER: traceparent}
    return _PROPAGATOR.extract(carrier, Context())


def _traceparent(span: Span) -> str | None:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier.get(amqp.TRACEPARENT_HEADER)
