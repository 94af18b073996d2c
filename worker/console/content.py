"""Content: topics, the questions of one, and one question; withdrawing and restoring."""

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from worker.console import asked, shown, state
from worker.console.acts import Done, Question
from worker.errors import AddressError
from worker.operate.content.change import set_withdrawn
from worker.progress.nudging import nudging
from worker.store import content as owned
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.operate import content as stored

_TOPICS: Final = 50
_QUESTIONS: Final = 200
_AT_ONCE: Final = 50


async def content(request: Request) -> Response:
    """Topics, the questions of the topic in the address, or the question with a published id."""
    topic, user = asked.number(request, "topic"), asked.number(request, "user")
    pub_id = asked.text(request, "pub_id")
    async with transaction(state.of(request).looking) as connection:
        is_ours = await owned.is_ours(connection, "published")
        topics, questions, found = [], [], None
        if pub_id is not None:
            found = (await stored.published(connection, [pub_id])).get(pub_id)
        elif topic is not None:
            questions = await stored.list_questions(connection, topic, _QUESTIONS, patiently=False)
        else:
            topics = await stored.list_topics(connection, user, _TOPICS, patiently=False)
    return shown.page(
        request,
        "content.html",
        topic=topic,
        user=user,
        pub_id=pub_id,
        found=found,
        topics=topics,
        questions=questions,
        is_ours=is_ours,
        most_topics=_TOPICS,
        most_questions=_QUESTIONS,
    )


async def ask_restore(request: Request) -> Question:
    """Asks whether to publish the questions in the address again."""
    return Question(
        f"Publish {_named(_pub_ids(request))} again?",
        ("New answers count again. A session that was rejected meanwhile can be replayed.",),
        "Publish again",
        _back(request),
    )


async def restore(request: Request, _: Mapping[str, str], by: By) -> Done:
    """Publishes withdrawn questions again."""
    return await _set(request, by, withdrawn=False)


async def ask_withdraw(request: Request) -> Question:
    """Asks whether to withdraw the questions in the address."""
    return Question(
        f"Withdraw {_named(_pub_ids(request))}?",
        ("Workers skip new answers from now on. All that was answered stays.",),
        "Withdraw",
        _back(request),
    )


async def withdraw(request: Request, _: Mapping[str, str], by: By) -> Done:
    """Withdraws questions."""
    return await _set(request, by, withdrawn=True)


async def _set(request: Request, by: By, *, withdrawn: bool) -> Done:
    pub_ids = _pub_ids(request)
    console = state.of(request)
    async with nudging(console.acting, console.settings) as on_change:
        changed = await set_withdrawn(
            console.acting, pub_ids, by, withdrawn=withdrawn, on_change=on_change
        )
    word = "withdrawn" if withdrawn else "published again"
    is_one = changed == 1
    said = f"{shown.counted(changed, 'question')} {'is' if is_one else 'are'} {word}."
    return Done(said, _back(request))


def _pub_ids(request: Request) -> list[str]:
    pub_ids = [*dict.fromkeys(request.query_params.getlist("pub_id"))]
    if not 0 < len(pub_ids) <= _AT_ONCE:
        raise AddressError(
            f"The address names {len(pub_ids)} questions", f"name from 1 to {_AT_ONCE}."
        )
    return pub_ids


def _named(pub_ids: list[str]) -> str:
    return f"question {pub_ids[0]}" if len(pub_ids) == 1 else f"{len(pub_ids)} questions"


def _back(request: Request) -> str:
    given = asked.text(request, "back")
    if given is not None:
        return asked.own_path(given)
    return asked.address("/content", pub_id=_pub_ids(request)[0])
