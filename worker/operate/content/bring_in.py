"""`content import`: adds topics and questions and publishes them, all of a file or nothing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.errors import ContentError
from worker.operate.content.lines import Line
from worker.operate.content.writable import check_ours
from worker.operate.lines import shown
from worker.store import audit
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.operate import content as stored
from worker.store.operate.content import NewQuestion, Owner, Published

_LINES_AT_ONCE: Final = 5_000
_CHARACTERS_AT_ONCE: Final = 4_000_000
_IDS: Final = {"study_topics_pkey": "study_topics", "study_questions_pkey": "study_questions"}
"""The tables whose ids a sequence counts, by the constraint that an id breaks if it is taken."""


@dataclass(slots=True)
class Imported:
    """What an import changed."""

    topics: int = 0
    """New topics."""
    questions: int = 0
    """New questions, each with its publication."""
    moved: int = 0
    """Questions that belong to another topic now."""
    texts: int = 0
    """Questions that got another title or text."""
    unchanged: int = 0
    """Questions that were already there as they are in the file."""
    withdrawn: int = 0
    """Those of the questions in the file that are withdrawn, and stay so."""


async def bring_in(
    engine: AsyncEngine,
    lines: Sequence[Line],
    by: By,
    *,
    dry_run: bool,
    progress: Callable[[int, int], None],
) -> Imported:
    """Imports the lines in one transaction, which is rolled back after a `dry_run`.

    Importing them again changes nothing. A published question keeps its owner and its correct
    choice: if a line has others, it raises `ContentError` with the line's number. It also raises
    that where the content is the application's own.
    """
    done = Imported()
    try:
        async with transaction(engine) as connection:
            await check_ours(connection, "study_topics", "study_questions", "published")
            savepoint = await connection.begin_nested()
            topics = _Topics(connection, done)
            read = 0
            for some in _grouped(lines):
                await _some(connection, topics, some, done)
                read += len(some)
                progress(read, len(lines))
            if dry_run:
                await savepoint.rollback()
            elif done.topics or done.questions or done.moved or done.texts:
                await audit.record(connection, by, "content import", "content", asdict(done))
    except IntegrityError as error:
        broken = getattr(getattr(error.orig, "__cause__", None), "constraint_name", None)
        if table := _IDS.get(broken or ""):
            raise ContentError(
                f"The next id of {table} is taken, because rows were added with ids of their own",
                f"set the sequence of {table}.id to its largest id, and run the import again.",
            ) from error
        raise ContentError(
            "Another session changed the same topics or questions at the same time",
            "run the import again.",
        ) from error
    return done


class _Topics:
    """The topics of a file's owners: looked up once, and created where they are missing."""

    def __init__(self, connection: AsyncConnection, done: Imported) -> None:
        self._connection = connection
        self._done = done
        self._owners: set[Owner] = set()
        self._named: dict[tuple[Owner, str], list[int]] = {}

    async def of(self, lines: Sequence[Line]) -> list[int]:
        """The topic of each line."""
        new_owners = {line.user_id for line in lines if line.topic is not None} - self._owners
        for topic_id, owner, name in await stored.topics_of(self._connection, new_owners):
            self._named.setdefault((owner, name), []).append(topic_id)
        self._owners |= new_owners
        missing = {
            (line.user_id, line.topic): None
            for line in lines
            if line.topic is not None and (line.user_id, line.topic) not in self._named
        }
        for topic_id, owner, name in await stored.add_topics(self._connection, [*missing]):
            self._named[owner, name] = [topic_id]
        self._done.topics += len(missing)
        owner_of = await stored.owners_of_topics(
            self._connection, {line.topic_id for line in lines if line.topic_id is not None}
        )
        return [self._checked(line, owner_of) for line in lines]

    def _checked(self, line: Line, owner_of: dict[int, Owner]) -> int:
        if line.topic is not None:
            found = self._named[line.user_id, line.topic]
            if len(found) > 1:
                raise ContentError(
                    f"Line {line.number}: {_owned(line.user_id)} has {len(found)} topics named"
                    f" {shown(line.topic)}",
                    "give topic_id instead of topic.",
                )
            return found[0]
        assert line.topic_id is not None
        if line.topic_id not in owner_of:
            raise ContentError(f"Line {line.number}: there is no topic {line.topic_id}.")
        if (owner := owner_of[line.topic_id]) != line.user_id:
            raise ContentError(
                f"Line {line.number}: topic {line.topic_id} belongs to {_owned(owner)}, not to"
                f" {_owned(line.user_id)}",
                "correct topic_id or user_id.",
            )
        return line.topic_id


async def _some(
    connection: AsyncConnection, topics: _Topics, lines: Sequence[Line], done: Imported
) -> None:
    placed = [
        (line, topic_id)
        for line, topic_id in zip(lines, await topics.of(lines), strict=True)
        if line.pub_id is not None
    ]
    known = await stored.published(connection, [line.pub_id or "" for line, _ in placed])
    new: list[NewQuestion] = []
    moved: dict[int, int] = {}
    texts: dict[int, tuple[str | None, str | None]] = {}
    for line, topic_id in placed:
        assert line.pub_id is not None and line.correct_choice is not None
        before = known.get(line.pub_id)
        if before is None:
            question = NewQuestion(
                line.pub_id, line.user_id, topic_id, line.correct_choice, line.title, line.text
            )
            new.append(question)
            continue
        question_id = _same(line, before)
        done.withdrawn += before.withdrawn
        if topic_id != before.topic_id:
            moved[question_id] = topic_id
        # A file without titles says nothing about them.
        told = (line.title or before.title, line.text or before.text)
        if told != (before.title, before.text):
            texts[question_id] = told
        if question_id not in moved and question_id not in texts:
            done.unchanged += 1
    await stored.add_questions(connection, new)
    await stored.move(connection, moved)
    await stored.set_texts(connection, texts)
    done.questions += len(new)
    done.moved += len(moved)
    done.texts += len(texts)


def _same(line: Line, before: Published) -> int:
    """The question behind the line's pub_id, which must be the line's own."""
    place = f"Line {line.number}: pub_id {shown(line.pub_id)}"
    another = "publish this question under another pub_id."
    if before.kind != "question":
        raise ContentError(f"{place} is published as a {shown(before.kind)}", another)
    if before.question_id is None or before.deleted:
        raise ContentError(f"{place} belongs to a question that was deleted", another)
    if before.owner != line.user_id:
        raise ContentError(
            f"{place} belongs to {_owned(before.owner)}, not to {_owned(line.user_id)}",
            f"correct user_id, or {another}",
        )
    if before.correct_choice != line.correct_choice:
        raise ContentError(
            f"{place} has the correct choice {before.correct_choice}, not {line.correct_choice}",
            "correct the line. If the key has changed, run `study-ingest rescore --pub-id"
            f" {line.pub_id} --correct-choice {line.correct_choice}` first.",
        )
    return before.question_id


def _owned(owner: Owner) -> str:
    return "the shared bank" if owner is None else f"user {owner}"


def _grouped(lines: Sequence[Line]) -> Iterator[list[Line]]:
    some: list[Line] = []
    size = 0
    for line in lines:
        some.append(line)
        size += len(line.text or "")
        if len(some) == _LINES_AT_ONCE or size > _CHARACTERS_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some
