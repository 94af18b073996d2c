"""What operators see of partitions: in `status`, in `doctor`, and of `topology`."""

import json
from typing import Any

import pytest

from schemas import amqp
from tests.broker_fixtures import until
from tests.factories import batch, right
from tests.worker.operate.commands import invoke
from tests.worker.operate.conftest import Site
from worker.broker.management import Management
from worker.store import leases
from worker.store.engine import transaction

pytestmark = pytest.mark.broker


async def answered(site: Site, *words: str, **variables: str) -> Any:
    return json.loads((await invoke(site, *words, "--json", **variables)).stdout)


async def test_status_shows_the_batches_and_the_worker_of_each_partition(site: Site) -> None:
    four = {"INGEST_PARTITIONS": "4"}
    await answered(site, "topology", **four)
    async with transaction(site.engine) as connection:
        await leases.keep(connection, "host:7:abc", ["study.attempts", "study.attempts.2"], 600)
    await site.publish(batch(right("q-1")))

    async def look() -> Any:
        return await answered(site, "status", **four)

    found = await until(look, lambda seen: sum(each["ready"] for each in seen["partitions"]) == 1)
    assert found["broker"]["partitions"] == 4
    assert [each["name"] for each in found["partitions"]] == [
        amqp.partition_queue(number) for number in range(1, 5)
    ]
    assert [each["workers"] for each in found["partitions"]] == [[], ["host:7:abc"], [], []]
    [alone] = (each for each in found["attention"] if each["code"] == "no_consumer")
    assert "study.attempts." in alone["found"] and "1 batches wait" in alone["found"]
    assert "host:7:abc" in (await invoke(site, "status", **four)).stdout

    elsewhere = await answered(site, "status")
    [differ] = (each for each in elsewhere["attention"] if each["code"] == "partitions_differ")
    assert differ["found"] == "INGEST_PARTITIONS is 1 here, and the broker has 4."
    assert "queues_missing" not in {each["code"] for each in elsewhere["attention"]}


async def test_doctor_finds_that_batches_reach_workers_twice(site: Site) -> None:
    two = {"INGEST_PARTITIONS": "2"}
    await answered(site, "topology", **two)

    async def finding(**variables: str) -> dict[str, str]:
        found = (await answered(site, "doctor", **variables))["findings"]
        [one] = (each for each in found if each["check"] == "partitions")
        return dict(one)

    assert (await finding(**two))["found"] == "The queue has 2 partitions."
    assert (await finding())["severity"] == "note"
    async with Management(site.settings) as management:
        # As `topology` of an older version does.
        await management.bind(amqp.INGEST_EXCHANGE, amqp.ATTEMPTS_QUEUE, amqp.ATTEMPTS_BINDING)
    found = await finding(**two)
    assert found["severity"] == "warning"
    assert "binding of study.attempts to study.ingest by attempts.v1.#" in found["found"]
    steps = (await answered(site, "topology", **two))["changes"]
    assert {step["verb"] for step in steps} == {"unchanged", "removed"}
    assert (await finding(**two))["severity"] == "ok"
