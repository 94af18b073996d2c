"""The management API as far as looking goes: nodes and their alarms, our login, the broker's clock.

Needs a login with the tag `monitoring`. Knows the API's paths; may not know what is good or bad
(`worker/operate/doctor`).
"""

from datetime import datetime
from email.utils import parsedate_to_datetime

from worker.broker.accounts import Accounts
from worker.broker.management import Json


class Inspection(Accounts):
    """What a broker says of itself. Raises as `Management` does."""

    async def nodes(self) -> list[Json]:
        """Each with `name`, `running`, `mem_alarm`, `disk_free_alarm`, `disk_free`."""
        nodes: list[Json] = await self._get("nodes")
        return nodes

    async def login(self) -> Json:
        """Our own `name` and `tags` (a list, and on old brokers one string)."""
        found: Json = await self._get("whoami")
        tags = found.get("tags") or []
        return found | {"tags": tags.split(",") if isinstance(tags, str) else tags}

    async def clock(self) -> datetime | None:
        """The broker's time, to the second; None where something between us leaves it out."""
        said = (await self._send("GET", "whoami")).headers.get("date")
        return None if said is None else parsedate_to_datetime(said)
