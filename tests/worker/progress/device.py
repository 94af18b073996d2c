"""A device, written from docs/progress.md alone: it knows only the wire."""

import json
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass
class Held:
    """What a device holds of one user."""

    cursor: str | None = None
    epoch: str | None = None
    version: int = 0
    questions: dict[str, Json] = field(default_factory=dict)
    times: dict[str, tuple[int, str]] = field(default_factory=dict)
    """(version, due_at) from results, by published id."""


@dataclass
class Device:
    """Several users' progress, and whether there is something to ask for."""

    held: dict[str, Held] = field(default_factory=dict)
    asks: set[str] = field(default_factory=set)
    """The users for whom it has to ask."""
    ignored: int = 0
    """Pages that did not apply."""

    def of(self, user_id: str) -> Held:
        return self.held.setdefault(user_id, Held())

    def request(self, user_id: str) -> Json:
        self.asks.discard(user_id)
        return {"user_id": user_id, "cursor": self.of(user_id).cursor}

    def page(self, body: bytes | str) -> bool:
        """Whether the page applied."""
        page = json.loads(body)
        mine = self.of(page["user_id"])
        if page.get("since") != mine.cursor:
            self.ignored += 1
            return False
        if page.get("starts_over") is not None:
            mine.questions.clear()
            mine.times.clear()
        for question in page["questions"]:
            mine.questions[question["question_id"]] = question
        for question_id in page["forget"]:
            mine.questions.pop(question_id, None)
        version = page["version"]
        mine.times = {key: each for key, each in mine.times.items() if each[0] > version}
        mine.cursor, mine.epoch, mine.version = page["cursor"], page["epoch"], version
        if page["next"] not in ("page", "nothing"):
            self.asks.add(page["user_id"])
        return True

    def mark(self, mark: Json) -> None:
        """A nudge, or the part of a result."""
        mine = self.of(mark["user_id"])
        if mine.cursor is None or mine.epoch != mark["epoch"] or mine.version < mark["version"]:
            self.asks.add(mark["user_id"])

    def result(self, body: str) -> None:
        """A result, of which only what is about progress matters."""
        result = json.loads(body)
        mark = result.get("progress")
        if mark is None:
            return
        self.mark(mark)
        mine = self.of(mark["user_id"])
        if mine.cursor is None or mine.epoch != mark["epoch"] or mark["version"] <= mine.version:
            return
        for due in result.get("due", ()):
            known = mine.times.get(due["question_pub_id"])
            if known is None or known[0] < mark["version"]:
                mine.times[due["question_pub_id"]] = (mark["version"], due["due_at"])
