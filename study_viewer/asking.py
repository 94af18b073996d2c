"""Keeps the progress on this device current: when to ask, and what to do with what comes.

docs/progress.md is the protocol. Everything here may fail without harm to batches and results.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import uuid4

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import ChannelClosed, DeliveryError, PublishError
from pydantic import ValidationError

from study_viewer.progress import ProgressStore
from study_viewer.schemas.amqp import (
    CONTENT_TYPE,
    PROGRESS_NUDGE_TYPE,
    PROGRESS_PAGE_TYPE,
    PROGRESS_REFUSAL_TYPE,
    PROGRESS_REQUEST_TYPE,
    progress_request_key,
)
from study_viewer.schemas.ingest_result import IngestResult
from study_viewer.schemas.progress import (
    ProgressMark,
    ProgressPage,
    ProgressRefusal,
    ProgressRequest,
)
from study_viewer.schemas.words import Next, RefusalReason, Status
from study_viewer.settings import RelaySettings

log = logging.getLogger(__name__)

User = int | None
"""None is the one user of a viewer that does not know it yet."""

NOT_UPGRADED: Final = (
    "this viewer gets no progress: ask the operator to run `study-ingest viewer upgrade`"
)
NOBODY_ANSWERS: Final = (
    "nobody answers requests for progress: the server is older than this library, or its topology"
    " is not set up"
)


class _Way(NamedTuple):
    """A request under way."""

    tries: int
    again: bool
    """Whether something has changed since it was sent."""


class Plan:
    """Whom to ask about, and when. Times are those of one clock that never goes back. Pure."""

    def __init__(self, settings: RelaySettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._due: dict[User, float] = {}
        """When each user will be asked about, unless something happens before."""
        self._under_way: dict[User, _Way] = {}
        self._behind: set[User] = set()
        """The users about whom not everything is here."""

    @property
    def current(self) -> bool:
        """Whether everything is here, as far as anybody said."""
        return not self._behind

    def ask(self, user: User) -> None:
        """Something has changed."""
        self._behind.add(user)
        if user in self._under_way:
            self._under_way[user] = self._under_way[user]._replace(again=True)
        else:
            self._due[user] = self._clock()

    def to_ask(self) -> list[User]:
        """The users to ask about now. Their requests are under way from now on."""
        now = self._clock()
        found = [user for user, due in self._due.items() if due <= now]
        for user in found:
            tries = self._under_way[user].tries if user in self._under_way else 0
            wait = self._settings.progress_patience * 2.0 ** min(tries, 30)
            self._due[user] = now + min(wait, self._settings.progress_patience_max)
            self._under_way[user] = _Way(tries + 1, again=False)
        return found

    def wait(self) -> float | None:
        """The seconds until somebody is to be asked about. None if nobody is."""
        return max(0.0, min(self._due.values()) - self._clock()) if self._due else None

    def page(self, user: int, following: str) -> None:
        """A page was applied, and this comes after it."""
        self._behind.add(user)
        self._forget_nameless(user)
        way = self._under_way.pop(user, _Way(0, again=False))
        if following == Next.PAGE:
            self._under_way[user] = _Way(0, way.again)
            self._due[user] = self._clock() + self._settings.progress_patience
        elif following == Next.NOTHING and not way.again:
            self._behind.discard(user)
            self._due[user] = self._clock() + self._settings.progress_interval
        else:
            self.ask(user)

    def refused(self, user: User) -> None:
        """It makes no sense to ask about the user before the next connection."""
        for of_user in (self._due, self._under_way):
            of_user.pop(user, None)
        self._behind.discard(user)

    def _forget_nameless(self, user: int) -> None:
        """The viewer's one user has a name now, which a result may have told before."""
        self._due.pop(None, None)
        way = self._under_way.pop(None, None)
        if way is not None:
            self._under_way.setdefault(user, way)
        self._behind.discard(None)


def request(user: User, cursor: str | None, user_id: str | None) -> Message:
    """The AMQP message that asks about a user since a cursor. `user_id` is the login, if it is the
    viewer.
    """
    asked = ProgressRequest(user_id=None if user is None else str(user), cursor=cursor)
    return Message(
        asked.model_dump_json(exclude={"user_id"} if user is None else None).encode(),
        delivery_mode=DeliveryMode.NOT_PERSISTENT,
        content_type=CONTENT_TYPE,
        type=PROGRESS_REQUEST_TYPE,
        timestamp=datetime.now(UTC),
        message_id=str(uuid4()),
        user_id=user_id,
    )


def read(message: AbstractIncomingMessage) -> ProgressPage | ProgressMark | ProgressRefusal | None:
    """What a message in the queue of progress says. None if this library can't read it."""
    models: dict[str | None, type[ProgressPage | ProgressMark | ProgressRefusal]] = {
        PROGRESS_PAGE_TYPE: ProgressPage,
        PROGRESS_NUDGE_TYPE: ProgressMark,
        PROGRESS_REFUSAL_TYPE: ProgressRefusal,
    }
    # Minor versions only add: `study.progress_page.v1.1` is read like v1.
    kind = message.type or ""
    model = models.get(".".join(kind.split(".")[:3]))
    try:
        return None if model is None else model.model_validate_json(message.body)
    except ValidationError:
        return None


def take(
    store: ProgressStore, plan: Plan, told: ProgressPage | ProgressMark | ProgressRefusal
) -> str | None:
    """Does what a message says. It changes the store in one transaction.

    Returns one sentence for a refusal, for whoever has to do something about it.
    """
    if isinstance(told, ProgressPage):
        if store.apply(told):
            plan.page(int(told.user_id), told.next)
    elif isinstance(told, ProgressMark):
        if store.lacks(told):
            plan.ask(int(told.user_id))
    else:
        plan.refused(None if told.user_id is None else int(told.user_id))
        advice = told.reason.advice if isinstance(told.reason, RefusalReason) else ""
        return f"no progress: {told.detail} {advice}".strip()
    return None


def take_result(store: ProgressStore, plan: Plan, result: IngestResult) -> None:
    """Asks if a result says that there is something to ask for."""
    if result.progress is not None:
        if store.lacks(result.progress):
            plan.ask(int(result.progress.user_id))
    elif result.status is not Status.REJECTED:
        for user in _known(store):
            plan.ask(user)


def _known(store: ProgressStore) -> list[User]:
    return [*store.users()] or [None]


async def send(exchange: AbstractExchange, viewer: str, message: Message) -> str | None:
    """Publishes a request. Returns one sentence if nobody can answer it. A full queue is none: the
    request is repeated later.
    """
    try:
        await exchange.publish(message, routing_key=progress_request_key(viewer), mandatory=True)
    except PublishError:
        return NOBODY_ANSWERS
    except DeliveryError:
        log.debug("the queue of requests for progress is full")
    return None


def why(error: BaseException) -> str:
    """One sentence on why progress can't be asked for."""
    if isinstance(error, ChannelClosed):
        return NOT_UPGRADED
    return f"progress can't be asked for: {error or type(error).__name__}"
