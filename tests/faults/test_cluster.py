"""Three RabbitMQ nodes, each killed in turn under load. Minutes: `./dev test -m cluster`."""

from pathlib import Path

import pytest

from chaos.cluster import run
from devtools import servers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(
        any(service.embedded_obstacle() for service in servers.SERVICES.values()),
        reason="./dev can't run servers of its own here",
    ),
]


async def test_each_node_is_lost_in_turn_and_nothing_else(tmp_path: Path) -> None:
    outcome = await run(tmp_path, print)

    assert len(outcome.members) == len(outcome.killed) == 3
    assert "leader" in outcome.killed[0]
    assert outcome.violations == []
    # No worker was started again; each ended when it was asked to.
    assert outcome.exits == {"worker-1": {"asked": 1}, "worker-2": {"asked": 1}}
    assert max(outcome.paused) < 60
