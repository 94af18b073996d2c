"""The demo's numbers, as a table for people and as one JSON object for programs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Report:
    """The numbers of deliveries. `seconds` is from the first recorded batch to the last settled
    one.
    """

    sent: int
    ingested: int
    duplicates: int
    rejected: dict[str, int]
    lost: int
    differences: int
    seconds: float
    attempts: int
    reviews: int | None = None
    differing: int = 0
    """The number of progress rows that differ from those of the same log ingested in order."""
    devices_wrong: Sequence[int] = ()
    """For each device, the number of due dates in its file that are not those of the server."""

    @property
    def ok(self) -> bool:
        """Whether nothing is lost and everything stored is right."""
        return (
            self.lost == 0
            and self.differences == 0
            and self.differing == 0
            and not any(self.devices_wrong)
        )

    @property
    def verify(self) -> str | int:
        """ "ok", or the number of differences."""
        return self.differences or "ok"

    def compared_with_order(
        self, *, reviews: int, differing: int, devices_wrong: Sequence[int]
    ) -> "Report":
        """The same report with what was compared with the log in order, and with the devices."""
        return replace(self, reviews=reviews, differing=differing, devices_wrong=devices_wrong)

    def as_json(self) -> str:
        """One line."""
        found: dict[str, object] = {
            "sent": self.sent,
            "ingested": self.ingested,
            "duplicates": self.duplicates,
            "rejected": self.rejected,
            "lost": self.lost,
            "verify": self.verify,
            "seconds": round(self.seconds, 3),
        }
        if self.reviews is not None:
            found |= {
                "reviews": self.reviews,
                "differing_from_order": self.differing,
                "devices_wrong": list(self.devices_wrong),
            }
        return json.dumps(found)

    def show(self, console: Console) -> None:
        """The table."""
        table = Table(title="What happened to every delivery", min_width=60)
        table.add_column("")
        table.add_column("count", justify="right")
        table.add_row("sent", f"{self.sent:,}")
        table.add_row("ingested", f"{self.ingested:,}")
        table.add_row("duplicates", f"{self.duplicates:,}")
        for reason, count in self.rejected.items():
            table.add_row(f"rejected: {reason}", f"{count:,}")
        table.add_row("lost", f"{self.lost:,}", style="green" if self.lost == 0 else "bold red")
        table.add_section()
        table.add_row("attempts stored", f"{self.attempts:,}")
        table.add_row("deliveries settled per second", f"{self.sent / self.seconds:,.0f}")
        table.add_row("seconds", f"{self.seconds:.1f}")
        table.add_row("verify", "ok" if self.differences == 0 else f"{self.differences} differ")
        if self.reviews is not None:
            table.add_section()
            table.add_row("reviews in the log", f"{self.reviews:,}")
            table.add_row("progress rows that differ from the log in order", f"{self.differing:,}")
            table.add_row("wrong due dates on each device", ", ".join(map(str, self.devices_wrong)))
        console.print(table)
        console.print("To look at the database: ./dev psql")
