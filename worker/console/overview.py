"""The first page: what needs attention, what waits, and what the last hours were like. Also the
search, which leads to whatever a word names.
"""

from typing import Final
from urllib.parse import quote
from uuid import UUID

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from worker.console import asked, shown, state
from worker.errors import AddressError

_SHOWN: Final = 50
_WHERE: Final = {
    "dead_letters": ("/dead", "See the dead letters"),
    "uncollected": ("/dead", "See the dead letters"),
    "paused": ("/workers", "Resume on the page of workers"),
    "no_consumer": ("/workers", "See workers and queues"),
    "backlog": ("/workers", "See workers and queues"),
    "queues_missing": ("/workers", "See workers and queues"),
    "outbox_lag": ("/workers", "See workers and queues"),
    "followups_full": ("/workers", "See workers and queues"),
    "followups_unconsumed": ("/workers", "See workers and queues"),
    "retrying": ("/workers", "See workers and queues"),
    "newer_version": ("/workers", "See workers and queues"),
    "viewer_without_queue": ("/viewers", "See the viewers"),
    "viewer_without_progress": ("/viewers", "See the viewers"),
    "viewer_without_grant": ("/viewers", "See the viewers"),
    "viewer_silent": ("/viewers?silent=7d", "See who is silent"),
    "no_writes": ("/doctor", "Ask the doctor"),
    "commits_hang": ("/doctor", "Ask the doctor"),
    "schema": ("/doctor", "Ask the doctor"),
    "not_set_up": ("/doctor", "Ask the doctor"),
}
"""The page that shows what needs attention, by its code."""


async def overview(request: Request) -> Response:
    """Everything at a glance."""
    seen = await state.of(request).seen.get(state.PATIENCE)
    return shown.page(request, "overview.html", seen=seen, where=_WHERE)


async def find(request: Request) -> Response:
    """Leads to the batch with a uuid, to the user with a number, or to viewers with a name."""
    word = asked.text(request, "q")
    if word is None:
        raise AddressError("Nothing was entered", "enter a user, a viewer or the uuid of a batch.")
    try:
        return RedirectResponse(f"/batches/{UUID(word)}", 303)
    except ValueError:
        pass
    if word.removeprefix("-").isdecimal():
        return RedirectResponse(f"/learners/{asked.as_number(word, 'The user')}", 303)
    everybody = await state.of(request).viewers.get(state.PATIENCE)
    names = [each.name for each in everybody.found if word.lower() in each.name.lower()]
    if word in names or len(names) == 1:
        return RedirectResponse(f"/viewers/{quote(word if word in names else names[0])}", 303)
    return shown.page(request, "find.html", word=word, names=names[:_SHOWN], count=len(names))
