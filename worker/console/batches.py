"""Batches: those that fit a filter, and what became of one. One that should not count is voided."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from worker.console import asked, shown, state
from worker.console.acts import Done, Question
from worker.console.who import Role
from worker.errors import NoBatch
from worker.operate import batch as operation
from worker.operate import void as voiding
from worker.store.audit import By
from worker.store.operate.batches import Batch, Wanted

_SHOWN: Final = 100
_STATES: Final = ("ingested", "rejected", "voided", "erased")


async def listed(request: Request) -> Response:
    """The newest batches that fit the filters in the address."""
    if uuid := asked.text(request, "uuid"):
        return RedirectResponse(f"/batches/{asked.as_uuid(uuid)}", 303)
    age = asked.one_of(request, "since", asked.AGES) or "24h"
    status = asked.one_of(request, "status", dict.fromkeys(_STATES))
    wanted = Wanted(
        datetime.now(UTC) - asked.AGES[age],
        asked.number(request, "user"),
        asked.text(request, "viewer"),
        asked.number(request, "topic"),
        _STATES if status is None else (status,),
        asked.moment(request, "until"),
    )
    found = await operation.find(state.of(request).looking, wanted, _SHOWN)
    return shown.page(
        request,
        "batches.html",
        wanted=wanted,
        age=age,
        status=status,
        states=_STATES,
        found=found,
        older=_older(wanted, found),
    )


def _older(wanted: Wanted, found: list[Batch]) -> datetime | None:
    """Where the next page begins. None if there is none.

    A group has one moment, so the next page begins with batches of the last one's.
    """
    if len(found) < _SHOWN:
        return None
    last = found[-1].at
    return last if last != wanted.until else last - timedelta(microseconds=1)


async def life(request: Request) -> Response:
    """All that is known about one batch. What was answered is for those who may look."""
    console = state.of(request)
    uuid = asked.as_uuid(request.path_params["uuid"])
    try:
        found = await operation.life(console.looking, console.settings, uuid)
    except NoBatch as unknown:
        return shown.page(request, "batch.html", uuid=uuid, life=None, unknown=unknown)
    may_look = request.state.person.role >= Role.LOOK
    return shown.page(request, "batch.html", uuid=uuid, life=found, may_look=may_look)


async def ask_void(request: Request) -> Question:
    """Asks whether to take the batch out of its user's progress."""
    uuid = asked.as_uuid(request.path_params["uuid"])
    return Question(
        "Void this session?",
        (
            f"The answers of session {uuid} stay on record, and count for nothing any more.",
            "The user's schedule and patterns are computed as if they had never been given.",
        ),
        "Void the session for good",
        f"/batches/{uuid}",
        is_final=True,
    )


async def void(request: Request, _: Mapping[str, str], by: By) -> Done:
    """Takes the batch out of its user's progress."""
    console, uuid = state.of(request), asked.as_uuid(request.path_params["uuid"])
    done = await voiding.void(console.acting, uuid, console.settings.policy(), by)
    said = f"The answers of user {done.user_id} do not count any more: {done.attempts}."
    return Done(said if done.sessions else "The session was void already.", f"/batches/{uuid}")
