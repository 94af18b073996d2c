"""The requests that wait for an answer: viewers in turn, and each at a limited rate. Pure."""

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

_PER_SECOND: Final = 25
"""Answers of one page for one viewer, in the long run."""
_AT_ONCE: Final = 50
"""Answers of one page for one viewer that has not asked for a while."""
_FURTHER_PAGE: Final = 2.5
"""Each page of an answer after the first one counts as so many answers of one page, because all
pages before the last one are full, and a single page seldom is.
"""
_PER_VIEWER_MAX: Final = 1_000
"""Requests of one viewer that wait, each for another user."""
_REQUESTS_MAX: Final = 10_000
"""Requests of all viewers that wait."""


Request = TypeVar("Request")


class Waiting(Generic[Request]):
    """The requests in their order. Times are those of one monotonic clock."""

    def __init__(self) -> None:
        self._by_viewer: dict[str, OrderedDict[Hashable, Request]] = {}
        self._turns: deque[str] = deque()
        """The viewers with requests, each once."""
        self._paid: dict[str, float] = {}
        """Until when each viewer's answers have used up its rate."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, viewer: str, about: Hashable, request: Request) -> bool:
        """Adds a request, in the place of an earlier one by the viewer about the same. Returns
        False if there is no room.
        """
        mine = self._by_viewer.get(viewer)
        if mine is not None and about in mine:
            mine[about] = request
            return True
        if self._count >= _REQUESTS_MAX or (mine is not None and len(mine) >= _PER_VIEWER_MAX):
            return False
        if mine is None:
            mine = self._by_viewer[viewer] = OrderedDict()
            self._turns.append(viewer)
        mine[about] = request
        self._count += 1
        return True

    def take(self, now: float) -> Request | None:
        """The next request that may be answered now. None if there is none."""
        for _ in range(len(self._turns)):
            viewer = self._turns.popleft()
            if self._may_have_at(viewer) > now:
                self._turns.append(viewer)
                continue
            mine = self._by_viewer[viewer]
            _, request = mine.popitem(last=False)
            if mine:
                self._turns.append(viewer)
            else:
                del self._by_viewer[viewer]
            self._count -= 1
            self._charge(viewer, 1, now)
            return request
        return None

    def next_at(self) -> float | None:
        """When `take` has something to give. None if nothing waits."""
        return min(map(self._may_have_at, self._turns), default=None)

    def _may_have_at(self, viewer: str) -> float:
        return self._paid.get(viewer, 0.0) - _AT_ONCE / _PER_SECOND

    def pay(self, viewer: str, further_pages: int, now: float) -> None:
        """Counts the pages after the first one of an answer. `take` has counted the first one."""
        self._charge(viewer, further_pages * _FURTHER_PAGE, now)

    def _charge(self, viewer: str, answers: float, now: float) -> None:
        if len(self._paid) >= _REQUESTS_MAX:
            self._paid = {each: until for each, until in self._paid.items() if until > now}
        self._paid[viewer] = max(self._paid.get(viewer, now), now) + answers / _PER_SECOND
