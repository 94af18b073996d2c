"""Progress as docs/contract.md defines it, computed from the whole list of attempts.

It shares the attempt and the words with the fold and nothing else: it keeps no running counts and
no state, and FSRS-6 is written from its published formulas.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise, takewhile
from math import exp, floor
from typing import Any, Final

from schemas.words import Outcome, Pattern
from worker.domain.fold import Progress
from worker.domain.scoring import ScoredAttempt

# The default parameters of FSRS-6, as its page "The Algorithm" lists them.
W: Final = (
    *(0.212, 1.2931, 2.3065, 8.2956, 6.4133, 0.8334, 3.0194, 0.001, 1.8722, 0.1666, 0.796),
    *(1.4835, 0.0614, 0.2629, 1.6483, 0.6014, 1.8729, 0.5425, 0.0912, 0.0658, 0.1542),
)


def in_order(attempts: Sequence[ScoredAttempt]) -> list[ScoredAttempt]:
    """The order of attempts that docs/contract.md gives under *The law*."""
    return sorted(
        attempts,
        key=lambda each: (
            each.answered_at,
            each.ordered_at,
            str(each.client_session_uuid),
            each.position,
        ),
    )


def ahead(
    session: Sequence[ScoredAttempt], attempts: Sequence[ScoredAttempt]
) -> list[ScoredAttempt]:
    """Those of `attempts` that lie before the session's first one."""
    whole = in_order([*session, *attempts])
    return whole[: whole.index(in_order(session)[0])]


def counts(attempts: Sequence[ScoredAttempt]) -> dict[str, Any]:
    """All of progress but the schedule."""
    attempts = in_order(attempts)
    outcomes = [each.outcome for each in attempts]
    correct = [outcome is Outcome.CORRECT for outcome in outcomes]
    letters = "".join("c" if each else "-" for each in correct)
    return {
        "attempts_count": len(outcomes),
        "correct_count": outcomes.count(Outcome.CORRECT),
        "wrong_count": outcomes.count(Outcome.WRONG),
        "unsure_count": outcomes.count(Outcome.UNSURE),
        "correct_run": len(letters) - len(letters.rstrip("c")),
        "best_run": max(map(len, letters.split("-"))),
        "lapse_count": letters.count("c-"),
        "first_correct_at": next(
            (each.answered_at for each in attempts if each.outcome is Outcome.CORRECT), None
        ),
        "last_outcome": outcomes[-1],
        "last_answered_at": attempts[-1].answered_at,
    }


def pattern(attempts: Sequence[ScoredAttempt], stability: float) -> Pattern:
    """The first pattern that fits, with the default policy."""
    attempts = in_order(attempts)
    letters = "".join(
        {Outcome.CORRECT: "c", Outcome.WRONG: "w", Outcome.UNSURE: "u"}[each.outcome]
        for each in attempts
    )
    lapses = sum(a == "c" and b != "c" for a, b in pairwise(letters))
    waits = [days_between(a.answered_at, b.answered_at) for a, b in pairwise(attempts[-3:])]
    run = len(list(takewhile(lambda letter: letter == "c", reversed(letters))))
    if letters[-3:] == "ccc" and min(waits) >= 1 and stability >= 21:
        return Pattern.MASTERED
    if lapses >= 4:
        return Pattern.LEECH
    if (len(letters) >= 10 and "ccc" not in letters) or (len(letters) >= 5 and "c" not in letters):
        return Pattern.STUCK
    if letters[-1] != "c" and "c" in letters:
        return Pattern.RELAPSED
    if letters[-1] == "c" and lapses and run < 3:
        return Pattern.RECOVERING
    if letters[-4:].count("u") >= 2:
        return Pattern.HESITANT
    if len(letters) >= 2 and set(letters) == {"c"}:
        return Pattern.KNOWN
    return Pattern.LEARNING


def days_between(earlier: datetime, later: datetime) -> int:
    """The elapsed days of docs/contract.md."""
    return floor(((later - earlier) / timedelta(hours=1) + 12) / 24)


def schedule(attempts: Sequence[ScoredAttempt]) -> tuple[float, float, datetime]:
    """Stability, difficulty and due time by the formulas of FSRS-6."""
    stability = difficulty = 0.0
    last: datetime | None = None
    for each in in_order(attempts):
        grade = _grade(each)
        if last is None:
            stability, difficulty = W[grade - 1], _limited(_first_difficulty(grade))
        else:
            days = days_between(last, each.answered_at)
            if days < 1:
                growth = exp(W[17] * (grade - 3 + W[18])) * stability ** -W[19]
                next_stability = stability * (growth if grade == 1 else max(growth, 1.0))
            elif grade == 1:
                recall = retrievability(stability, days)
                forgotten = (
                    W[11]
                    * difficulty ** -W[12]
                    * ((stability + 1) ** W[13] - 1)
                    * exp(W[14] * (1 - recall))
                )
                next_stability = min(forgotten, stability / exp(W[17] * W[18]))
            else:
                recall = retrievability(stability, days)
                next_stability = stability * (
                    1
                    + exp(W[8])
                    * (11 - difficulty)
                    * stability ** -W[9]
                    * (exp(W[10] * (1 - recall)) - 1)
                    * (W[15] if grade == 2 else 1)
                )
            stability = max(next_stability, 0.001)
            moved = difficulty - W[6] * (grade - 3) * (10 - difficulty) / 9
            difficulty = _limited(W[7] * _first_difficulty(4) + (1 - W[7]) * moved)
        last = each.answered_at
    assert last is not None
    # With a desired retention of 90 % the interval is the stability, in whole days.
    return stability, difficulty, last + timedelta(days=min(max(round(stability), 1), 36_500))


def retrievability(stability: float, days: int) -> float:
    """The forgetting curve: 90 % after `stability` days."""
    factor = 0.9 ** (-1 / W[20]) - 1
    return float((1 + factor * max(days, 0) / stability) ** -W[20])


def differences(progress: Progress, attempts: Sequence[ScoredAttempt]) -> list[str]:
    """The fields in which `progress` differs from what docs/contract.md requires for `attempts`."""
    found = [
        f"{name} is {getattr(progress, name)}, should be {value}"
        for name, value in counts(attempts).items()
        if getattr(progress, name) != value
    ]
    stability, difficulty, due_at = schedule(attempts)
    memory = progress.memory
    if abs(memory.stability - stability) > 1e-9 * stability:
        found.append(f"stability is {memory.stability}, should be {stability}")
    if abs(memory.difficulty - difficulty) > 1e-9:
        found.append(f"difficulty is {memory.difficulty}, should be {difficulty}")
    if memory.due_at != due_at:
        found.append(f"due_at is {memory.due_at}, should be {due_at}")
    return found


def _grade(attempt: ScoredAttempt) -> int:
    if attempt.outcome is Outcome.CORRECT:
        return 3
    return 2 if attempt.outcome is Outcome.UNSURE and attempt.is_correct else 1


def _first_difficulty(grade: int) -> float:
    return W[4] - exp(W[5] * (grade - 1)) + 1


def _limited(difficulty: float) -> float:
    return min(max(difficulty, 1.0), 10.0)
