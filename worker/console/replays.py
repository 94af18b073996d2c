"""Acts on dead letters: replaying and discarding what fits a filter, and what became of replays."""

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from worker.console import asked, shown, state
from worker.console.acts import Done, Question
from worker.console.dead import filters, wanted
from worker.console.state import Replayed
from worker.errors import IngestError, NoBatch
from worker.operate.dead import discard as discarding
from worker.operate.dead import replay as replaying
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.operate import dead as stored

AT_ONCE: Final = 10_000
"""Letters in one act, so that it ends while somebody waits for it."""
_KEPT: Final = 20
"""Replays whose letters are remembered."""


async def ask_replay(request: Request) -> Question:
    """Asks whether to replay the letters that fit the filters in the address."""
    chosen, count = await _chosen(request, replayable=True)
    consequences: tuple[str, ...] = (
        "A worker publishes each letter again and deletes it once the broker has confirmed it.",
        "A letter that still can't be ingested becomes a dead letter again.",
    )
    if left_out := count - len(chosen):
        consequences += (
            f"{shown.counted(left_out, 'letter')} will be left out: only the beginning is kept, a"
            f" replay is under way, or there are more than {AT_ONCE:,}.",
        )
    return Question(
        f"Replay {shown.counted(len(chosen), 'dead letter')}?",
        consequences,
        "Replay",
        asked.address("/dead/letters", **filters(request)),
        hidden={"newest": str(max(chosen, default=0))},
        amount=len(chosen),
    )


async def replay(request: Request, fields: Mapping[str, str], by: By) -> Done:
    """Asks the workers to replay the letters that were seen."""
    letters = await _seen(request, fields, replayable=True)
    console = state.of(request)
    done = await replaying.replay(console.acting, letters, by, _no_progress)
    said = f"{shown.counted(len(done), 'letter')} {'is' if len(done) == 1 else 'are'} replayed."
    if len(done) == 1 and (uuid := done[0].client_session_uuid) is not None:
        return Done(said, f"/batches/{uuid}")
    name = secrets.token_urlsafe(8)
    console.replays[name] = Replayed(datetime.now(UTC), by.actor, done)
    while len(console.replays) > _KEPT:
        del console.replays[next(iter(console.replays))]
    return Done(said, f"/dead/replays/{name}")


async def outcomes(request: Request) -> Response:
    """What became of a replay."""
    console = state.of(request)
    done = console.replays.get(request.path_params["name"])
    if done is None:
        raise NoBatch(
            "This replay is not remembered any more",
            "the page of each batch says what became of it.",
        )
    async with transaction(console.looking) as connection:
        found = await stored.outcomes(connection, done.letters)
    return shown.page(request, "replayed.html", found=found, replay=done)


async def ask_discard(request: Request) -> Question:
    """Asks whether to discard the letters that fit the filters in the address."""
    chosen, count = await _chosen(request, replayable=False)
    consequences: tuple[str, ...] = (
        "They are deleted for good, and what was answered in them is never counted.",
    )
    if more := count - len(chosen):
        consequences += (f"{shown.counted(more, 'letter')} will be left: repeat it for them.",)
    return Question(
        f"Discard {shown.counted(len(chosen), 'dead letter')}?",
        consequences,
        "Discard for good",
        asked.address("/dead/letters", **filters(request)),
        hidden={"newest": str(max(chosen, default=0))},
        is_final=True,
        amount=len(chosen),
    )


async def discard(request: Request, fields: Mapping[str, str], by: By) -> Done:
    """Deletes the letters that were seen."""
    letters = await _seen(request, fields, replayable=False)
    count = await discarding.discard(state.of(request).acting, letters, by, _no_progress)
    is_one = count == 1
    return Done(f"{shown.counted(count, 'letter')} {'is' if is_one else 'are'} discarded.", "/dead")


async def _chosen(request: Request, *, replayable: bool) -> tuple[dict[int, str], int]:
    """The reasons of the letters that an act would be about, by id, and how many fit."""
    meant = wanted(request)
    async with transaction(state.of(request).looking) as connection:
        count = await stored.count(connection, meant)
        chosen = await stored.ids(connection, meant, replayable=replayable, limit=AT_ONCE)
    if not chosen:
        raise IngestError(
            "No letter is left for this",
            "look at the letters again: they may be replaying, or not kept whole.",
        )
    return chosen, count


async def _seen(request: Request, fields: Mapping[str, str], *, replayable: bool) -> dict[int, str]:
    """The letters of the question, without those that came after it."""
    newest = asked.as_number(fields.get("newest", ""), "newest")
    amount = asked.as_number(fields.get("amount", ""), "How many")
    chosen, _ = await _chosen(request, replayable=replayable)
    seen = [number for number in chosen if number <= newest][: max(amount, 0)]
    return {number: chosen[number] for number in seen}


def _no_progress(_: int, __: int) -> None:
    pass
