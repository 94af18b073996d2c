"""`content check`: what in the content makes workers skip or reject answers."""

from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from worker.operate.doctor.finding import Finding, Severity
from worker.operate.lines import shown
from worker.store.engine import transaction
from worker.store.operate import content as stored

_JUDGED: Final[dict[str, tuple[Severity, str, str]]] = {
    "owners": (
        "warning",
        "{} questions have another owner than their topic: {}.",
        "Give each question the owner of its topic, because a batch changes one user's history.",
    ),
    "orphans": (
        "danger",
        "{} questions belong to a topic that does not exist: {}.",
        "Create the topic, or move the questions. Answers to them cannot be stored.",
    ),
    "dangling": (
        "danger",
        "{} publications lead to no question: {}.",
        "Withdraw them with `study-ingest content withdraw`. Workers skip answers to them.",
    ),
    "deleted": (
        "warning",
        "{} publications lead to a deleted question: {}.",
        "Withdraw them with `study-ingest content withdraw`, so that viewers stop to ask.",
    ),
    "duplicates": (
        "note",
        "{} questions are published under more than one id: {}.",
        "Nothing is lost: answers to all of the ids count for the same question.",
    ),
    "unpublished": (
        "note",
        "{} questions were never published: {}.",
        "Viewers cannot ask them.",
    ),
    "topics": (
        "note",
        "{} names belong to several topics of one owner: {}.",
        "An import needs `topic_id` for these topics.",
    ),
}
"""How bad each kind of trouble is, what was found, and what to do."""


async def check(engine: AsyncEngine) -> list[Finding]:
    """One finding for each kind of trouble. `ok` where there is none."""
    async with transaction(engine, isolation="repeatable_read") as connection:
        troubles = await stored.troubles(connection)
    return [_finding(kind, troubles[kind]) for kind in _JUDGED]


def _finding(kind: str, trouble: stored.Trouble) -> Finding:
    severity, found, remedy = _JUDGED[kind]
    if not trouble.rows:
        return Finding(f"content {kind}", "ok", "Nothing was found.")
    examples = ", ".join(map(shown, trouble.examples))
    more = ", …" if trouble.rows > len(trouble.examples) else ""
    return Finding(f"content {kind}", severity, found.format(trouble.rows, examples + more), remedy)
