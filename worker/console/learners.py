"""Learners: a user's sessions, those that were not counted, and the report of what the user knows,
also as a link that expires.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from worker.console import asked, shown, state
from worker.console.acts import Done, Question
from worker.errors import NoBatch
from worker.operate import batch as operation
from worker.operate.report.gather import gather
from worker.operate.report.page import STYLE, page
from worker.store import audit
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.operate import dead, grants
from worker.store.operate.batches import Wanted

_SHOWN: Final = 20
_DAYS: Final = 7
"""Days for which a link to a report is good."""
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)


async def learners(request: Request) -> Response:
    """Asks for a user."""
    if (user := asked.number(request, "user")) is not None:
        return RedirectResponse(f"/learners/{user}", 303)
    return shown.page(request, "learners.html")


async def learner(request: Request) -> Response:
    """One user: sessions, letters that may be the user's, and viewers."""
    user, looking = _user(request), state.of(request).looking
    async with transaction(looking) as connection:
        viewers = await grants.viewers_of(connection, user, _SHOWN)
        letters = await dead.about(connection, user, _SHOWN)
    batches = await operation.find(looking, Wanted(_EPOCH, user), _SHOWN)
    return shown.page(
        request,
        "learner.html",
        user=user,
        viewers=viewers,
        letters=letters,
        batches=batches,
        most=_SHOWN,
        days=_DAYS,
    )


async def report(request: Request) -> Response:
    """The user's report as of now."""
    return await _report(request, _user(request))


async def shared(request: Request) -> Response:
    """The report behind a link, for whoever has it until it expires."""
    user = state.of(request).entrance.unseal("report", request.path_params["sealed"])
    if not isinstance(user, int):
        raise NoBatch("This link has expired, or is not whole", "ask for another.")
    return await _report(request, user)


async def _report(request: Request, user: int) -> Response:
    console = state.of(request)
    found = await gather(console.looking, console.settings.policy(), user, datetime.now(UTC))
    return HTMLResponse(page(found, stylesheet="/report.css"))


async def style(_: Request) -> Response:
    """The report's style: a page of the console has none of its own."""
    return Response(STYLE, media_type="text/css")


async def ask_share(request: Request) -> Question:
    """Asks whether to make a link to the user's report."""
    user = _user(request)
    return Question(
        f"Make a link to the report of user {user}?",
        (
            f"Whoever has the link sees what user {user} knows and should review, without signing"
            f" in, for {_DAYS} days.",
            "A link can't be taken back, unless the console's tokens change.",
        ),
        "Make the link",
        f"/learners/{user}",
    )


async def share(request: Request, _: Mapping[str, str], by: By) -> Done:
    """Makes a link to the user's report."""
    console, user = state.of(request), _user(request)
    async with transaction(console.acting) as connection:
        await audit.record(connection, by, "report link", f"user {user}", {"days": _DAYS})
    sealed = console.entrance.seal("report", user, timedelta(days=_DAYS).total_seconds())
    return Done("The link is made.", asked.address(f"/learners/{user}/link", sealed=sealed))


async def link(request: Request) -> Response:
    """Shows a link that was made."""
    entrance = state.of(request).entrance
    sealed = asked.text(request, "sealed") or ""
    if entrance.unseal("report", sealed) != _user(request):
        raise NoBatch("This link has expired, or is not whole", "make another.")
    scheme = "https" if entrance.is_encrypted(request) else "http"
    address = str(request.url.replace(scheme=scheme, path=f"/reports/{sealed}", query=""))
    return shown.page(request, "link.html", user=_user(request), address_of_report=address)


def _user(request: Request) -> int:
    return asked.as_number(request.path_params["user"], "The user")
