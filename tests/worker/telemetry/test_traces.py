"""Traces of a real worker process, as a collector gets them, and as they go on to the viewer."""

import sys
import time
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas import amqp
from schemas.followups import EXPLANATION
from tests import factories as make
from tests.broker_fixtures import VIEWER, Broker
from tests.worker.telemetry.collector import collecting
from tests.worker_process import running
from worker.broker.management import Management
from worker.settings import Settings
from worker.telemetry import traces

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"

pytestmark = pytest.mark.broker


async def test_a_trace_goes_on_from_the_viewer_to_the_result_and_the_follow_up(
    settings: Settings, broker: Broker, question: make.Published
) -> None:
    async with Management(settings) as management:
        await management.declare_queue("results", {})
        await management.bind(amqp.RESULTS_EXCHANGE, "results", amqp.result_key(VIEWER))
    batch = make.batch(make.wrong(question))
    async with collecting() as collector:
        variables: dict[str, Any] = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        async with running(settings, **variables) as worker:
            await worker.until_ready()
            await broker.publish(
                batch.model_dump_json(),
                headers={amqp.TRACEPARENT_HEADER: f"00-{TRACE}-{PARENT}-01"},
            )
            result = await broker.take("results")
            job = await broker.take(amqp.followups_queue(EXPLANATION.routing_key))
            await worker.logged("delivery.settled")
        spans = await collector.until(2)

    assert collector.services == {"study-ingest"}
    (delivered,) = (span for span in spans if span.name == f"process {amqp.ATTEMPTS_QUEUE}")
    assert delivered.trace_id.hex() == TRACE and delivered.parent_span_id.hex() == PARENT
    attributes = {each.key: each.value for each in delivered.attributes}
    assert attributes["messaging.system"].string_value == "rabbitmq"
    said = UUID(attributes["study.client_session_uuid"].string_value)
    assert said == batch.client_session_uuid
    for message in (result, job):
        assert message.headers[amqp.TRACEPARENT_HEADER] == (
            f"00-{TRACE}-{delivered.span_id.hex()}-01"
        )
    (ingest,) = (span for span in spans if span.name == "ingest")
    assert [link.span_id for link in ingest.links] == [delivered.span_id]


async def test_an_unreachable_collector_does_not_delay_the_exit(
    settings: Settings, broker: Broker, question: make.Published
) -> None:
    async with running(settings, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1") as worker:
        await broker.publish(make.batch(make.right(question)).model_dump_json())
        await worker.logged("delivery.settled", disposition="ingested")
        began = time.monotonic()
        assert await worker.end() == 0
        assert time.monotonic() - began < 8


async def test_without_a_collector_no_tracing_code_is_loaded(
    settings: Settings, engine: AsyncEngine
) -> None:
    with traces.exported(), traces.delivered([]) as spans:
        assert spans is None
    assert "opentelemetry.sdk.trace" not in sys.modules
