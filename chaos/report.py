"""The report of a run: one object for programs, tables for people.

It counts. Only the exit code is a judgment: that of the checker, and of faults that failed after
they had struck.
"""

import json
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from chaos.nemesis import Outcome

_SHOWN = 20
"""The number of violations that it shows one by one."""


def is_ok(outcome: Outcome) -> bool:
    """Whether the law held: nothing lost, doubled or wrong, and every batch got its result, and
    every viewer its progress. A fault that was missed changes nothing, because it did not strike.
    """
    ended = outcome.drained_after is not None and outcome.current_after is not None
    return ended and not outcome.violations


def figures(outcome: Outcome, folder: Path) -> dict[str, Any]:
    """All numbers of the run, ready for JSON. Times are in seconds."""
    found = outcome.found
    kinds = Counter(violation.kind for violation in outcome.violations)
    results = {told.message_id: told.body["status"] for told in found.told}
    statuses = Counter(results.values())
    recoveries = [
        each.recovered_after for each in outcome.inflicted if each.recovered_after is not None
    ]
    return {
        "ok": is_ok(outcome),
        "seed": outcome.seed,
        "seconds": outcome.seconds,
        "faults": _faults(outcome),
        "faults_injected": len(outcome.inflicted),
        "kinds_of_fault": len({each.kind for each in outcome.inflicted}),
        "faults_missed": outcome.missed,
        "batches_recorded": len(found.recorded),
        "batches_sent": sum(recorded.confirms for recorded in found.recorded),
        "strange_messages": dict(Counter(each.expected for each in found.strange)),
        "batches_ingested": len(found.inbox),
        "attempts_ingested": len(found.attempts),
        "progress_held_by_viewers": len(found.held),
        "parked": dict(Counter(str(each.reason or "delivery_limit") for each in found.parked)),
        "duplicates_seen_by_database": statuses["already_ingested"],
        "results_repeated_on_the_wire": len(found.told) - len(results),
        "jobs": len({job.message_id for job in found.jobs}),
        "jobs_repeated_on_the_wire": len(found.jobs) - len({job.message_id for job in found.jobs}),
        "viewers_asked_what_is_there": len(found.checked),
        "looks_of_operators": len(found.looks),
        **_logged(folder),
        "lost": kinds["lost"],
        "doubled": kinds["doubled"],
        "wrong": kinds["wrong"],
        "recovery_median": _rounded(statistics.median(recoveries)) if recoveries else None,
        "recovery_worst": _rounded(max(recoveries)) if recoveries else None,
        "longest_pause": _rounded(outcome.longest_pause),
        "drained_after": outcome.drained_after,
        "current_after": outcome.current_after,
        "exits": outcome.exits,
        "violations": [str(violation) for violation in outcome.violations[:_SHOWN]],
    }


def as_json(figures: dict[str, Any]) -> str:
    """One line."""
    return json.dumps(figures)


def show(figures: dict[str, Any], console: Console) -> None:
    """The tables."""
    table = Table(title="Faults, and seconds from the end of their cause to the next commit")
    for name in ("fault", "times", "median", "worst"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    for kind, each in figures["faults"].items():
        table.add_row(
            kind,
            str(each["times"]),
            _shown(each["recovery_median"]),
            _shown(each["recovery_worst"]),
        )
    console.print(table)
    table = Table(title="What happened to everything", min_width=60)
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in figures.items():
        if isinstance(value, int | float | None) and name != "ok":
            table.add_row(name.replace("_", " "), _shown(value))
    console.print(table)
    for line in (*figures["faults_missed"], *figures["violations"]):
        console.print(line, soft_wrap=True)
    console.print("The law held." if figures["ok"] else "The law did not hold.")


def _faults(outcome: Outcome) -> dict[str, Any]:
    by_kind = defaultdict(list)
    for each in outcome.inflicted:
        by_kind[each.kind].append(each)
    found = {}
    for kind, some in sorted(by_kind.items()):
        times = [each.recovered_after for each in some if each.recovered_after is not None]
        found[kind] = {
            "times": len(some),
            "hit": dict(Counter(each.hit for each in some)),
            "recovery_median": _rounded(statistics.median(times)) if times else None,
            "recovery_worst": _rounded(max(times)) if times else None,
        }
    return found


def _logged(folder: Path) -> dict[str, Any]:
    """What workers and relays logged: redeliveries, and changes of state."""
    redelivered = settled = 0
    events: Counter[str] = Counter()
    for log in (*folder.glob("worker-*.log"), *folder.glob("relay-*.log")):
        for line in log.read_text(errors="replace").splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                continue
            event = str(said.get("event")) if isinstance(said, dict) else ""
            if event == "delivery.settled":
                settled += 1
                redelivered += bool(said.get("redelivered"))
            elif event:
                events[event] += 1
    return {"deliveries": settled, "redeliveries": redelivered, "log_events": dict(events)}


def _rounded(seconds: float) -> float:
    return round(seconds, 2)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,}"
