"""Content, where its tables are ours: adding to it, looking at it, and what depends on it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

Owner = int | None
"""The user who owns a topic or a question. None for a shared bank."""


class Published(NamedTuple):
    """A publication, and the question behind it, as far as there is one."""

    kind: str
    withdrawn: bool
    question_id: int | None
    owner: Owner
    topic_id: int | None
    correct_choice: int | None
    deleted: bool
    title: str | None
    text: str | None


class NewQuestion(NamedTuple):
    """A question that is added together with its publication."""

    pub_id: str
    owner: Owner
    topic_id: int
    correct_choice: int
    title: str | None
    text: str | None


class Topic(NamedTuple):
    """A topic, and how many questions it has in which state."""

    topic_id: int
    user_id: Owner
    name: str
    questions: int
    published: int
    withdrawn: int
    deleted: int


class Question(NamedTuple):
    """A publication of a question. `pub_id` is None for a question that was never published."""

    question_id: int
    pub_id: str | None
    user_id: Owner
    topic_id: int
    correct_choice: int
    state: str
    title: str | None


# The planner is left alone: some of these statements read whole tables.
_BY_ITSELF: Final = tuple(
    f"SET LOCAL {setting} = on"
    for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin")
)
_PATIENTLY: Final = text("SET LOCAL statement_timeout = 0")

_TOPICS_OF: Final = text(
    "SELECT id, user_id, name FROM ours.study_topics WHERE user_id = ANY(CAST(:owners AS bigint[]))"
    " OR (:shared AND user_id IS NULL) ORDER BY id"
)

_ADD_TOPICS: Final = text(
    "INSERT INTO ours.study_topics (user_id, name) SELECT owner, name FROM"
    " unnest(CAST(:owners AS bigint[]), CAST(:names AS text[])) AS topic (owner, name)"
    " RETURNING id, user_id, name"
)

_OWNERS: Final = text(
    "SELECT id, user_id FROM ours.study_topics WHERE id = ANY(CAST(:topic_ids AS bigint[]))"
)

_PUBLISHED: Final = text(
    "SELECT publication.pub_id, publication.kind, publication.deleted, question.id,"
    " question.user_id, question.study_topic_id, question.correct_choice,"
    " question.deleted_at IS NOT NULL, told.title, told.text FROM ours.published AS publication"
    " LEFT JOIN ours.study_questions AS question ON question.id = publication.source_id"
    " AND publication.kind = 'question'"
    " LEFT JOIN ours.study_question_texts AS told ON told.study_question_id = question.id"
    " WHERE publication.pub_id = ANY(CAST(:pub_ids AS text[]))"
)

# The id is drawn first, because both tables need it.
_ADD_QUESTIONS: Final = text(
    "WITH line AS (SELECT nextval(pg_get_serial_sequence('ours.study_questions', 'id')) AS id,"
    " given.* FROM unnest(CAST(:pub_ids AS text[]), CAST(:owners AS bigint[]),"
    " CAST(:topic_ids AS bigint[]), CAST(:choices AS integer[]), CAST(:titles AS text[]),"
    " CAST(:texts AS text[])) AS given (pub_id, owner, topic_id, choice, title, text)),"
    " question AS (INSERT INTO ours.study_questions (id, user_id, study_topic_id, correct_choice)"
    " SELECT id, owner, topic_id, choice FROM line),"
    " told AS (INSERT INTO ours.study_question_texts (study_question_id, title, text)"
    " SELECT id, title, text FROM line WHERE title IS NOT NULL OR text IS NOT NULL)"
    " INSERT INTO ours.published (pub_id, kind, source_id) SELECT pub_id, 'question', id FROM line"
)

_MOVE: Final = text(
    "UPDATE ours.study_questions AS question SET study_topic_id = moved.topic_id FROM"
    " unnest(CAST(:question_ids AS bigint[]), CAST(:topic_ids AS bigint[]))"
    " AS moved (id, topic_id) WHERE question.id = moved.id"
)

_SET_TEXTS: Final = text(
    "INSERT INTO ours.study_question_texts (study_question_id, title, text)"
    " SELECT id, title, text FROM unnest(CAST(:question_ids AS bigint[]),"
    " CAST(:titles AS text[]), CAST(:texts AS text[]))"
    " AS told (id, title, text) ON CONFLICT (study_question_id)"
    " DO UPDATE SET title = excluded.title, text = excluded.text"
)

_KNOWN: Final = text(
    "SELECT pub_id FROM ours.published WHERE kind = 'question'"
    " AND pub_id = ANY(CAST(:pub_ids AS text[]))"
)

_SET_WITHDRAWN: Final = text(
    "UPDATE ours.published SET deleted = :withdrawn WHERE kind = 'question'"
    " AND pub_id = ANY(CAST(:pub_ids AS text[])) AND deleted <> :withdrawn"
)

_STATE: Final = (
    "CASE WHEN question.deleted_at IS NOT NULL THEN 'deleted'"
    " WHEN publication.pub_id IS NULL THEN 'unpublished'"
    " WHEN publication.deleted THEN 'withdrawn' ELSE 'published' END"
)

_LIST_TOPICS: Final = text(
    "SELECT topic.id, topic.user_id, topic.name, count(DISTINCT question.id),"
    + ",".join(
        f" count(DISTINCT question.id) FILTER (WHERE {_STATE} = '{state}')"
        for state in ("published", "withdrawn", "deleted")
    )
    + " FROM (SELECT * FROM ours.study_topics WHERE CAST(:user_id AS bigint) IS NULL"
    " OR user_id = :user_id ORDER BY id LIMIT :limit) AS topic"
    " LEFT JOIN ours.study_questions AS question ON question.study_topic_id = topic.id"
    " LEFT JOIN ours.published AS publication ON publication.source_id = question.id"
    " AND publication.kind = 'question'"
    " GROUP BY topic.id, topic.user_id, topic.name ORDER BY topic.id"
)

_LIST_QUESTIONS: Final = text(
    "SELECT question.id, publication.pub_id, question.user_id, question.study_topic_id,"
    f" question.correct_choice, {_STATE}, told.title FROM ours.study_questions AS question"
    " LEFT JOIN ours.published AS publication ON publication.source_id = question.id"
    " AND publication.kind = 'question'"
    " LEFT JOIN ours.study_question_texts AS told ON told.study_question_id = question.id"
    " WHERE question.study_topic_id = :topic_id ORDER BY question.id, publication.pub_id"
    " LIMIT :limit"
)


async def topics_of(
    connection: AsyncConnection, owners: Collection[Owner]
) -> Sequence[tuple[int, Owner, str]]:
    """(id, owner, name) of all topics of these owners."""
    if not owners:
        return []
    await _plan_freely(connection)
    users = [owner for owner in owners if owner is not None]
    rows = await connection.execute(_TOPICS_OF, {"owners": users, "shared": None in owners})
    return [(row[0], row[1], row[2]) for row in rows]


async def add_topics(
    connection: AsyncConnection, topics: Sequence[tuple[Owner, str | None]]
) -> Sequence[tuple[int, Owner, str]]:
    """Adds topics by (owner, name). Returns (id, owner, name) of each."""
    if not topics:
        return []
    owners, names = zip(*topics, strict=True)
    rows = await connection.execute(_ADD_TOPICS, {"owners": [*owners], "names": [*names]})
    return [(row[0], row[1], row[2]) for row in rows]


async def owners_of_topics(
    connection: AsyncConnection, topic_ids: Collection[int]
) -> dict[int, Owner]:
    """The owner of each topic that exists."""
    if not topic_ids:
        return {}
    rows = await connection.execute(_OWNERS, {"topic_ids": [*topic_ids]})
    return {row[0]: row[1] for row in rows}


async def published(connection: AsyncConnection, pub_ids: Collection[str]) -> dict[str, Published]:
    """What is published under these ids."""
    rows = await connection.execute(_PUBLISHED, {"pub_ids": [*pub_ids]})
    return {row[0]: Published(*row[1:]) for row in rows}


async def add_questions(connection: AsyncConnection, questions: Sequence[NewQuestion]) -> None:
    """Adds questions and publishes them."""
    if questions:
        pub_ids, owners, topics, choices, titles, texts = map(list, zip(*questions, strict=True))
        values = {"pub_ids": pub_ids, "owners": owners, "topic_ids": topics, "choices": choices}
        await connection.execute(_ADD_QUESTIONS, values | {"titles": titles, "texts": texts})


async def move(connection: AsyncConnection, moved: Mapping[int, int]) -> None:
    """Moves questions to other topics, by question."""
    if moved:
        values = {"question_ids": [*moved], "topic_ids": [*moved.values()]}
        await connection.execute(_MOVE, values)


async def set_texts(
    connection: AsyncConnection, told: Mapping[int, tuple[str | None, str | None]]
) -> None:
    """Sets the title and the text of questions."""
    if told:
        titles, texts = zip(*told.values(), strict=True)
        values = {"question_ids": [*told], "titles": [*titles], "texts": [*texts]}
        await connection.execute(_SET_TEXTS, values)


async def known(connection: AsyncConnection, pub_ids: Collection[str]) -> set[str]:
    """Those of the ids under which a question is published, withdrawn or not."""
    return {*(await connection.scalars(_KNOWN, {"pub_ids": [*pub_ids]})).all()}


async def set_withdrawn(
    connection: AsyncConnection, pub_ids: Collection[str], withdrawn: bool
) -> int:
    """Withdraws or restores publications. Returns how many were not so before."""
    values = {"pub_ids": [*pub_ids], "withdrawn": withdrawn}
    return (await connection.execute(_SET_WITHDRAWN, values)).rowcount


async def list_topics(
    connection: AsyncConnection, user_id: int | None, limit: int, *, patiently: bool = True
) -> list[Topic]:
    """Topics in the order of their ids, of one owner or of all. `patiently` lifts the timeout."""
    await _plan_freely(connection, patiently=patiently)
    rows = await connection.execute(_LIST_TOPICS, {"user_id": user_id, "limit": limit})
    return [Topic(*row) for row in rows]


async def list_questions(
    connection: AsyncConnection, topic_id: int, limit: int, *, patiently: bool = True
) -> list[Question]:
    """The questions of a topic, one for each publication. `patiently` lifts the timeout."""
    await _plan_freely(connection, patiently=patiently)
    rows = await connection.execute(_LIST_QUESTIONS, {"topic_id": topic_id, "limit": limit})
    return [Question(*row) for row in rows]


# ------------------------------------------------------------------------------------- checking


class Trouble(NamedTuple):
    """How many rows have one kind of trouble, and some of them."""

    rows: int
    examples: Sequence[str]


_EXAMPLES: Final = 5

_TROUBLES: Final[Mapping[str, str]] = {
    "owners": "SELECT question.id::text FROM ours.study_questions AS question"
    " JOIN ours.study_topics AS topic ON topic.id = question.study_topic_id"
    " WHERE question.deleted_at IS NULL AND topic.user_id IS DISTINCT FROM question.user_id",
    "orphans": "SELECT question.id::text FROM ours.study_questions AS question"
    " WHERE question.deleted_at IS NULL"
    " AND NOT EXISTS (SELECT FROM ours.study_topics AS topic"
    " WHERE topic.id = question.study_topic_id)",
    "unpublished": "SELECT question.id::text FROM ours.study_questions AS question"
    " WHERE question.deleted_at IS NULL AND NOT EXISTS (SELECT FROM ours.published AS publication"
    " WHERE publication.kind = 'question' AND publication.source_id = question.id)",
    "duplicates": "SELECT source_id::text FROM ours.published WHERE kind = 'question'"
    " AND NOT deleted GROUP BY source_id HAVING count(*) > 1",
    "dangling": "SELECT publication.pub_id FROM ours.published AS publication"
    " WHERE publication.kind = 'question' AND NOT publication.deleted AND NOT EXISTS"
    " (SELECT FROM ours.study_questions AS question WHERE question.id = publication.source_id)",
    "deleted": "SELECT publication.pub_id FROM ours.published AS publication"
    " JOIN ours.study_questions AS question ON question.id = publication.source_id"
    " WHERE publication.kind = 'question' AND NOT publication.deleted"
    " AND question.deleted_at IS NOT NULL",
    "topics": "SELECT CASE WHEN user_id IS NULL THEN 'the shared bank' ELSE 'user ' || user_id END"
    " || ': ' || left(name, 60) FROM ours.study_topics GROUP BY user_id, name HAVING count(*) > 1",
}
"""A query for what is wrong, by the kind of trouble."""


async def troubles(connection: AsyncConnection) -> dict[str, Trouble]:
    """Every kind of trouble, whether it exists or not."""
    await _plan_freely(connection)
    found = {}
    for kind, query in _TROUBLES.items():
        counted = text(
            "SELECT count(*), (array_agg(found.name ORDER BY found.name))[1:CAST(:few AS int)]"
            f" FROM ({query}) AS found (name)"
        )
        row = (await connection.execute(counted, {"few": _EXAMPLES})).one()
        found[kind] = Trouble(row[0], row[1] or ())
    return found


# --------------------------------------------------------------------- after changes of content

_THESE: Final = "(CAST(:question_ids AS bigint[]) IS NULL OR question.id = ANY(:question_ids))"
_MOVED: Final = (
    "progress.study_topic_id <> question.study_topic_id"
    " AND question.id = progress.study_question_id"
)

_BEHIND: Final = text(
    "SELECT pub_id, source_id FROM ours.published WHERE kind = 'question'"
    " AND pub_id = ANY(CAST(:pub_ids AS text[]))"
)

_MOVED_FOR: Final = text(
    "SELECT DISTINCT progress.user_id FROM ours.study_questions AS question"
    f" JOIN ours.study_question_progress AS progress ON {_MOVED} WHERE {_THESE}"
    " ORDER BY progress.user_id"
)

_FOLLOW: Final = text(
    "UPDATE ours.study_question_progress AS progress SET study_topic_id = question.study_topic_id"
    f" FROM ours.study_questions AS question WHERE progress.user_id = :user_id AND {_MOVED}"
    f" AND {_THESE}"
)

_ANSWERED_BY: Final = text(
    "SELECT DISTINCT user_id FROM ours.study_question_attempts"
    " WHERE study_question_id = ANY(CAST(:question_ids AS bigint[])) ORDER BY user_id"
)

_OTHER_KEY: Final = text(
    "SELECT DISTINCT question.id FROM ours.study_questions AS question"
    " JOIN ours.study_question_attempts AS attempt ON attempt.study_question_id = question.id"
    f" AND attempt.correct_choice <> question.correct_choice WHERE {_THESE} ORDER BY question.id"
)


async def behind(connection: AsyncConnection, pub_ids: Collection[str]) -> dict[str, int]:
    """The question behind each published id, withdrawn or not."""
    rows = await connection.execute(_BEHIND, {"pub_ids": [*pub_ids]})
    return {row[0]: row[1] for row in rows}


async def moved_for(
    connection: AsyncConnection, question_ids: Collection[int] | None
) -> Sequence[int]:
    """The users whose progress has one of the questions under the topic that it had before. None
    means all questions.
    """
    await _plan_freely(connection)
    return (await connection.scalars(_MOVED_FOR, {"question_ids": _listed(question_ids)})).all()


async def follow(
    connection: AsyncConnection, user_id: int, question_ids: Collection[int] | None
) -> int:
    """Moves a user's progress to the questions' own topics, under the user's lock. Returns the
    number of rows.
    """
    values = {"user_id": user_id, "question_ids": _listed(question_ids)}
    return (await connection.execute(_FOLLOW, values)).rowcount


async def answered_by(connection: AsyncConnection, question_ids: Collection[int]) -> Sequence[int]:
    """The users who have ever answered one of the questions."""
    return (await connection.scalars(_ANSWERED_BY, {"question_ids": [*question_ids]})).all()


async def with_another_key(
    connection: AsyncConnection, question_ids: Collection[int] | None
) -> Sequence[int]:
    """The questions with attempts that were scored by another correct choice."""
    await _plan_freely(connection)
    return (await connection.scalars(_OTHER_KEY, {"question_ids": _listed(question_ids)})).all()


def _listed(question_ids: Iterable[int] | None) -> list[int] | None:
    return None if question_ids is None else [*question_ids]


async def _plan_freely(connection: AsyncConnection, *, patiently: bool = True) -> None:
    for setting in _BY_ITSELF:
        await connection.execute(text(setting))
    if patiently:
        await connection.execute(_PATIENTLY)
