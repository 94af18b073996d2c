"""Workers and queues: what each queue holds, who consumes it, and the pause of all workers."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from worker.console import shown, state
from worker.console.acts import Done, Question
from worker.store import pause as stored
from worker.store.audit import By
from worker.store.engine import transaction


async def workers(request: Request) -> Response:
    """Queues, partitions and the pause."""
    seen = await state.of(request).seen.get(state.PATIENCE)
    return shown.page(request, "workers.html", seen=seen)


async def ask_pause(_: Request) -> Question:
    """Asks whether to pause ingest."""
    return Question(
        "Pause ingest?",
        (
            "All workers stop within 2 seconds, until somebody resumes them.",
            "Batches wait in the queue, and viewers get their results later. Nothing is lost.",
        ),
        "Pause ingest",
        "/workers",
    )


async def pause(request: Request, _fields: Mapping[str, str], by: By) -> Done:
    """Pauses ingest."""
    async with transaction(state.of(request).acting) as connection:
        _, is_new = await stored.pause(connection, by)
    return Done("Ingest is paused." if is_new else "Ingest was paused already.", "/workers")


async def ask_resume(_: Request) -> Question:
    """Asks whether to resume ingest."""
    return Question(
        "Resume ingest?", ("All workers go on within 2 seconds.",), "Resume ingest", "/workers"
    )


async def resume(request: Request, _: Mapping[str, str], by: By) -> Done:
    """Ends the pause."""
    async with transaction(state.of(request).acting) as connection:
        ended = await stored.resume(connection, by)
    return Done("Ingest was not paused." if ended is None else "Ingest has resumed.", "/workers")
