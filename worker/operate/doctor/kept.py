"""The findings about what is kept: how large it is, how it grows, and whether somebody prunes."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from asyncpg import PostgresError
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.errors import TransientFault
from worker.operate.doctor.finding import Finding
from worker.operate.status.facts import sized
from worker.settings import Settings
from worker.store.engine import reason_of, transaction
from worker.store.operate import sizes as stored
from worker.store.operate.sizes import Growth, Size
from worker.store.prune import MOMENTS_KEPT

_GB: Final = 1e9
_MANY_RESULTS: Final = 10 * _GB
_MANY_LETTERS: Final = _GB
_MANY_ENTRIES: Final = 1_000_000
_OVERDUE: Final = MOMENTS_KEPT + timedelta(days=3)
"""Workers prune once a day, if any runs."""


async def examine(settings: Settings, engine: AsyncEngine) -> list[Finding]:
    """The findings. The first says how large everything is."""
    try:
        async with transaction(engine) as connection:
            kept = await stored.sizes(connection)
            growth = await stored.growth(connection, kept)
    except (PostgresError, TransientFault) as error:  # a policy that hides rows, say
        return [
            Finding(
                "kept",
                "note",
                f"How large everything is was not found out ({reason_of(error)}).",
                "See what else was found.",
            )
        ]
    by_name = {each.what: each for each in kept}
    return [_whole(kept, growth), *_amiss(by_name, settings, datetime.now(UTC))]


def _whole(kept: list[Size], growth: Growth | None) -> Finding:
    largest = sorted(kept, key=lambda each: -each.bytes)[:3]
    named = ", ".join(f"{each.what} {sized(each.bytes)}" for each in largest)
    grows = (
        ""
        if growth is None
        else f" A batch leaves {growth.bytes_per_batch:,.0f} bytes, and a day"
        f" {sized(growth.bytes_per_day)}."
    )
    return Finding(
        "kept", "ok", f"The tables take {sized(sum(each.bytes for each in kept))}: {named}.{grows}"
    )


def _amiss(kept: Mapping[str, Size], settings: Settings, now: datetime) -> Iterator[Finding]:
    results, audit, letters = kept["results"], kept["audit"], kept["dead letters"]
    if settings.keep_results is None and results.bytes > _MANY_RESULTS:
        yield Finding(
            "kept",
            "warning",
            f"Results take {sized(results.bytes)}, and are kept for ever.",
            "Set INGEST_KEEP_RESULTS to the days for which a batch may come again (36500 keeps"
            " them), or run `study-ingest prune`.",
        )
    if settings.keep_audit is None and (audit.rows or 0) > _MANY_ENTRIES:
        yield Finding(
            "kept",
            "warning",
            f"The audit has about {audit.rows or 0:,} entries, and is kept for ever.",
            "Set INGEST_KEEP_AUDIT to the days for which you need it (36500 keeps it).",
        )
    if letters.bytes > _MANY_LETTERS:
        yield Finding(
            "kept",
            "warning",
            f"Dead letters take {sized(letters.bytes)}.",
            "Replay or discard them: `study-ingest dead list` says what they are.",
        )
    oldest = kept["moments"].oldest
    if oldest is not None and now - oldest > _OVERDUE:
        yield Finding(
            "kept",
            "warning",
            f"Nobody has pruned since {oldest + MOMENTS_KEPT:%Y-%m-%d}.",
            "Look for prune.failed in the workers' logs, and run `study-ingest prune`.",
        )
