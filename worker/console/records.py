"""The audit, and what the doctor finds."""

from collections import Counter
from datetime import UTC, datetime
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from worker.console import asked, shown, state
from worker.store import audit as stored
from worker.store.engine import transaction

_SHOWN: Final = 100


async def audit(request: Request) -> Response:
    """What operators did, the newest first."""
    age = asked.one_of(request, "since", asked.AGES)
    filters = {name: asked.text(request, name) for name in ("operation", "actor", "subject")}
    since = None if age is None else datetime.now(UTC) - asked.AGES[age]
    async with transaction(state.of(request).looking) as connection:
        found = await stored.entries(connection, **filters, since=since, limit=_SHOWN)
    return shown.page(request, "audit.html", found=found, age=age, filters=filters, most=_SHOWN)


async def doctor(request: Request) -> Response:
    """What the doctor found, at most a minute ago."""
    seen = await state.of(request).examined.get(state.PATIENCE)
    counts = Counter(each.severity for each in seen.findings)
    return shown.page(request, "doctor.html", seen=seen, counts=counts)
