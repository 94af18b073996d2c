"""Dead letters: in groups, one by one, and one as a whole with what would repair it."""

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from schemas.attempt_batch import AttemptBatch
from schemas.words import RejectReason
from worker.console import asked, shown, state
from worker.console.who import Role
from worker.errors import AddressError, NoBatch
from worker.operate.dead import letters as operation
from worker.operate.dead.causes import causes
from worker.operate.dead.compare import differences
from worker.operate.dead.rehearse import rehearse, replayed
from worker.store.engine import transaction
from worker.store.operate import dead as stored
from worker.store.operate.dead import Letter, Wanted

REASONS: Final = {str(reason): reason.advice for reason in RejectReason}
"""What a viewer's author does about each reason."""
_SHOWN: Final = 50
_FILTERS: Final = ("reason", "viewer", "anonymous", "detail", "uuid", "id", "newer", "older")


def wanted(request: Request) -> Wanted:
    """Which letters the filters in the address mean. Raises `AddressError`."""
    reason = asked.one_of(request, "reason", REASONS)
    viewer, detail = asked.text(request, "viewer"), request.query_params.get("detail")
    uuid = asked.text(request, "uuid")
    ids = asked.number(request, "id")
    newer = asked.one_of(request, "newer", asked.AGES)
    older = asked.one_of(request, "older", asked.AGES)
    viewers = {viewer} if viewer else {""} if asked.text(request, "anonymous") else ()
    return Wanted(
        frozenset(() if ids is None else (ids,)),
        frozenset((reason,) if reason else ()),
        frozenset(viewers),
        frozenset((asked.as_uuid(uuid),) if uuid else ()),
        None if older is None else asked.AGES[older],
        None if newer is None else asked.AGES[newer],
        frozenset() if detail is None else frozenset((detail,)),
    )


def filters(request: Request) -> dict[str, str | None]:
    """Every filter as it stands in the address; None where it is not given."""
    return {name: request.query_params.get(name) or None for name in _FILTERS}


async def groups(request: Request) -> Response:
    """The largest groups of letters that died of the same."""
    meant = wanted(request)
    async with transaction(state.of(request).looking) as connection:
        found = await stored.groups(connection, meant, _SHOWN)
        count = await stored.count(connection, meant)
    replays = state.of(request).replays
    return _listed(request, "dead.html", found=found, count=count, replays=replays)


async def letters(request: Request) -> Response:
    """The oldest letters that fit the filters."""
    meant = wanted(request)
    async with transaction(state.of(request).looking) as connection:
        found = await stored.briefs(connection, meant, _SHOWN)
        count = await stored.count(connection, meant)
    return _listed(request, "letters.html", found=found, count=count)


def _listed(request: Request, template: str, **found: Any) -> Response:
    given = filters(request)
    found |= {"filters": given, "is_filtered": any(given.values())}
    return shown.page(request, template, reasons=REASONS, most=_SHOWN, **found)


async def letter(request: Request) -> Response:
    """One letter, what it met, and what would repair it."""
    found = await one(request)
    batch = operation.batch_in(found)
    console = state.of(request)
    discrepancies = None
    async with transaction(console.looking) as connection:
        if not isinstance(batch, AttemptBatch):
            why = None
        else:
            why = await causes(connection, batch, found.brief.viewer, console.settings.policy())
            if found.brief.reason == RejectReason.UUID_REUSED:
                discrepancies = await differences(connection, batch)
    return shown.page(
        request,
        "letter.html",
        letter=found.brief,
        reason=REASONS.get(found.brief.reason),
        batch=batch if isinstance(batch, AttemptBatch) else None,
        why=why,
        properties=operation.properties_of(found),
        content=found.body.decode("utf-8", "backslashreplace"),
        discrepancies=discrepancies,
        may_look=request.state.person.role >= Role.LOOK,
        may_act=request.state.person.role >= Role.ACT,
    )


async def rehearsal(request: Request) -> Response:
    """What a replay would write; everything is rolled back."""
    found = await one(request)
    if not found.brief.is_whole:
        raise AddressError(
            "Only the beginning of this letter is kept, so it can't be replayed",
            "discard it, or ask its viewer to send it again.",
        )
    console = state.of(request)
    incoming = replayed(found, console.settings)
    seen = await rehearse(console.looking, incoming, console.settings.policy())
    return shown.page(request, "rehearsal.html", letter=found.brief, seen=seen)


async def one(request: Request) -> Letter:
    """The letter in the path. Raises `AddressError` if it is not there any more."""
    number = request.path_params["id"]
    if number < 2**63:
        only = Wanted(ids=frozenset({number}))
        async for found in operation.letters(state.of(request).looking, only, 1):
            return found
    raise NoBatch(
        f"There is no dead letter {number}",
        "it was replayed or discarded: the audit and the page of its batch say more.",
    )
