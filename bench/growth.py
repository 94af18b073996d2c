"""How cost grows: with the batch, the tables, the history and the backlog. Only with `--full`."""

from collections.abc import Callable
from typing import Any

from bench.stage import Stage


async def measure(stage: Stage, say: Callable[[str], None]) -> dict[str, Any]:
    """All curves."""
    return {}
