"""The part of the management API that only reads: nodes and alarms, our login, the broker's clock.

It needs a login with the tag `monitoring`. `worker/operate/doctor` judges what it finds.
"""

from datetime import datetime
from email.utils import parsedate_to_datetime

from worker.broker.accounts import Accounts
from worker.broker.management import Json


class Inspection(Accounts):
    """What the broker reports about itself. Raises as `Management` does."""

    async def nodes(self) -> list[Json]:
        """The nodes, each with `name`, `running`, `mem_alarm`, `disk_free_alarm` and
        `disk_free`.
        """
        nodes: list[Json] = await self._get("nodes")
        return nodes

    async def login(self) -> Json:
        """Our own `name` and `tags` (a list; on old brokers one string)."""
        found: Json = await self._get("whoami")
        tags = found.get("tags") or []
        return found | {"tags": tags.split(",") if isinstance(tags, str) else tags}

    async def clock(self) -> datetime | None:
        """The broker's time, to the second. None if a proxy removes it."""
        said = (await self._send("GET", "whoami")).headers.get("date")
        return None if said is None else parsedate_to_datetime(said)
