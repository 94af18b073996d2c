"""Who is answered next: viewers in turn, each at its rate, by the newest request for a user."""

from worker.progress import waiting
from worker.progress.waiting import Waiting


def _taken(line: Waiting[str], now: float) -> list[str]:
    found = []
    while (request := line.take(now)) is not None:
        found.append(request)
    return found


def test_viewers_have_their_turns() -> None:
    line = Waiting[str]()
    for user in range(3):
        line.add("loud", user, f"loud {user}")
    line.add("quiet", 1, "quiet 1")
    assert _taken(line, 100.0) == ["loud 0", "quiet 1", "loud 1", "loud 2"]
    assert len(line) == 0
    assert line.next_at() is None


def test_the_newest_request_for_a_user_takes_the_place_of_the_others() -> None:
    line = Waiting[str]()
    for number in range(10):
        assert line.add("ada", 1, f"first user {number}")
        assert line.add("ada", 2, f"second user {number}")
    assert len(line) == 2
    assert _taken(line, 100.0) == ["first user 9", "second user 9"]


def test_a_viewer_has_a_burst_and_then_a_rate() -> None:
    line = Waiting[str]()
    for user in range(500):
        line.add("loud", user, str(user))
    now = 100.0
    burst = len(_taken(line, now))
    assert waiting._AT_ONCE <= burst <= waiting._AT_ONCE + 1
    line.add("quiet", 1, "quiet")
    assert _taken(line, now) == ["quiet"]
    soon = line.next_at()
    assert soon is not None
    assert now < soon <= now + 2 / waiting._PER_SECOND
    assert len(_taken(line, soon + 0.001)) == 1
    later = sum(len(_taken(line, now + 1 + tenth / 10)) for tenth in range(100))
    assert abs(later - 10.9 * waiting._PER_SECOND) <= 2


def test_full_pages_count_more_than_answers_of_one_page() -> None:
    line = Waiting[str]()
    now, answers = 100.0, 0
    line.add("loud", 1, "")
    while _taken(line, now):
        line.pay("loud", 4, now)
        line.add("loud", 1, "")
        answers += 1
    each = 1 + 4 * waiting._FURTHER_PAGE
    assert waiting._AT_ONCE / each <= answers <= waiting._AT_ONCE / each + 1
    assert _taken(line, now + 1.1 * each / waiting._PER_SECOND) == [""]


def test_what_waits_is_bounded() -> None:
    line = Waiting[str]()
    assert all(line.add("ada", user, "x") for user in range(waiting._PER_VIEWER_MAX))
    assert not line.add("ada", -1, "x")
    assert line.add("ada", 1, "newer")
    for number in range(waiting._REQUESTS_MAX - waiting._PER_VIEWER_MAX):
        assert line.add(f"viewer-{number}", 1, "x")
    assert not line.add("one more", 1, "x")
    # What viewers have used up is forgotten as well.
    _taken(line, 100.0)
    assert len(line._paid) <= waiting._REQUESTS_MAX
