"""The policy: the decisions of an installation that ingest and the operations obey, as one value.

`Settings.policy` creates it from the settings, and it is passed on as a whole. A new threshold is a
field here, a setting, and the rule that reads it.
"""

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

MIB: Final = 1024**2


class Policy(NamedTuple):
    """What an installation may decide for itself; see the settings of the same names."""

    mastered_stability_days: float = 21.0
    leech_lapses: int = 4
    stuck_attempts: int = 10
    stuck_attempts_never_correct: int = 5
    default_deny: bool = False
    """Whether a viewer without any grant may write for nobody. Otherwise it may write for
    everybody.
    """
    erase_memory: timedelta = timedelta(days=90)
    """How long after an erasure an answer whose time can't be true counts as given before it."""
    earliest_answer: datetime = datetime(2015, 1, 1, tzinfo=UTC)
    """The earliest time that an answer can have. An earlier time comes from a wrong clock."""
    dead_body_bytes: int = 4 * MIB
    dead_letters_per_viewer: int = 10_000
    followups: tuple[str, ...] | None = None
    """The kinds of follow-up jobs that are written, by their routing keys. None means all."""

    def wants(self, kind: str) -> bool:
        """Whether jobs of this kind are written."""
        return self.followups is None or kind in self.followups
