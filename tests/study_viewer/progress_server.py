"""A server of progress, in memory, as docs/progress.md describes it: what devices agree with."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from study_viewer.schemas.ingest_result import Due, IngestResult
from study_viewer.schemas.progress import (
    ProgressMark,
    ProgressPage,
    ProgressRequest,
    QuestionProgress,
)
from study_viewer.schemas.words import Next, Outcome, Pattern, StartsOver, Status

BEGIN = datetime(2026, 3, 1, 9, tzinfo=UTC)
_PER_PAGE = 1


def question(number: int, version: int = 1, due: timedelta = timedelta(days=2)) -> QuestionProgress:
    """A question answered at `BEGIN`, and due so long after it."""
    return QuestionProgress(
        question_id=str(number),
        pub_ids=(f"q-{number}",),
        version=version,
        last_answered_at=BEGIN,
        last_outcome=Outcome.CORRECT,
        stability=2.3065,
        interval_days=due.days,
        due_at=BEGIN + due,
        correct=1,
        wrong=0,
        unsure=0,
        pattern=Pattern.LEARNING,
    )


@dataclass
class History:
    """One user's progress: the questions, and the versions that made it empty or forgot some."""

    version: int = 0
    questions: dict[int, QuestionProgress] = field(default_factory=dict)
    forgotten: dict[int, int] = field(default_factory=dict)
    """The version at which a question lost its progress."""
    erased: int = 0
    erased_at: datetime | None = None

    def copy(self) -> "History":
        return History(
            self.version,
            dict(self.questions),
            dict(self.forgotten),
            self.erased,
            self.erased_at,
        )


class Server:
    """The stored progress of some users, and the answers to requests."""

    def __init__(self, users: int = 2) -> None:
        self.epoch = "e0"
        self.users = {user: History() for user in range(1, users + 1)}
        self._restores = 0

    def change(self, user: int, numbers: set[int], due: timedelta) -> ProgressMark:
        """One transaction that gives these questions new due times."""
        history = self.users[user]
        history.version += 1
        for number in numbers:
            history.questions[number] = question(number, history.version, due)
            history.forgotten.pop(number, None)
        return self.mark(user)

    def republish(self, user: int, number: int, pub_ids: tuple[str, ...]) -> None:
        """The question is published under these ids now."""
        history = self.users[user]
        if known := history.questions.get(number):
            history.version += 1
            changed = {"pub_ids": pub_ids, "version": history.version}
            history.questions[number] = known.model_copy(update=changed)

    def forget(self, user: int, number: int) -> None:
        """The last session on the question is voided."""
        history = self.users[user]
        if history.questions.pop(number, None):
            history.version += 1
            history.forgotten[number] = history.version

    def erase(self, user: int, at: datetime) -> None:
        history = self.users[user]
        history.version += 1
        history.questions, history.forgotten = {}, {}
        history.erased, history.erased_at = history.version, at

    def snapshot(self) -> dict[int, History]:
        return {user: history.copy() for user, history in self.users.items()}

    def restore(self, snapshot: dict[int, History]) -> None:
        """The database as it was, under a new epoch."""
        self._restores += 1
        self.epoch = f"e{self._restores}"
        self.users = {user: history.copy() for user, history in snapshot.items()}

    def mark(self, user: int) -> ProgressMark:
        return ProgressMark(
            user_id=str(user), epoch=self.epoch, version=max(1, self.users[user].version)
        )

    def result(self, user: int, uuid: UUID, numbers: set[int]) -> IngestResult:
        """The result of the batch that the last change came from."""
        questions = self.users[user].questions
        return IngestResult(
            client_session_uuid=uuid,
            status=Status.INGESTED,
            received_at=BEGIN,
            due=tuple(
                Due(question_pub_id=pub_id, due_at=questions[number].due_at)
                for number in sorted(numbers)
                for pub_id in questions[number].pub_ids
            ),
            progress=self.mark(user),
        )

    def answer(self, request: ProgressRequest) -> list[ProgressPage]:
        """The pages for a request, all of one moment."""
        user = int(request.user_id or "1")
        history = self.users[user]
        starts_over, begin = self._begin(user, request.cursor)
        changes = sorted(
            [
                *((each.version, number) for number, each in history.questions.items()),
                *((version, number) for number, version in history.forgotten.items()),
            ]
        )
        changes = [each for each in changes if each > begin]
        parts = [changes[at : at + _PER_PAGE] for at in range(0, len(changes), _PER_PAGE)] or [[]]
        pages: list[ProgressPage] = []
        since = request.cursor
        for place, part in enumerate(parts):
            last = place == len(parts) - 1
            # A page may end within a version.
            upto = history.version if last else part[-1][0] - 1
            end = (history.version, 2**62) if last else part[-1]
            cursor = f"{self.epoch}.{user}.{end[0]}.{end[1]}"
            present = [number for _, number in part if number in history.questions]
            pages.append(
                ProgressPage(
                    user_id=str(user),
                    since=since,
                    cursor=cursor,
                    epoch=self.epoch,
                    version=upto,
                    starts_over=starts_over if place == 0 else None,
                    erased_at=history.erased_at if starts_over and place == 0 else None,
                    decay=0.1542,
                    questions=tuple(history.questions[number] for number in present),
                    forget=tuple(
                        str(number) for _, number in part if number not in history.questions
                    ),
                    next=Next.NOTHING if last else Next.PAGE,
                )
            )
            since = cursor
        return pages

    def _begin(self, user: int, cursor: str | None) -> tuple[StartsOver | None, tuple[int, int]]:
        history, start = self.users[user], (-1, -1)
        if cursor is None:
            return StartsOver.FIRST, start
        epoch, of_user, version, number = cursor.split(".")
        if int(of_user) != user:
            return StartsOver.UNKNOWN_CURSOR, start
        if epoch != self.epoch:
            return StartsOver.ANOTHER_EPOCH, start
        if int(version) > history.version:
            return StartsOver.AHEAD, start
        if int(version) < history.erased:
            return StartsOver.ERASED, start
        return None, (int(version), int(number))
