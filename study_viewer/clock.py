"""The device's clock, as answers tell it."""

from datetime import UTC, datetime, timedelta, timezone


def local_now() -> str:
    """The time now by this device's clock, in RFC 3339 with milliseconds and the offset of local
    time from UTC, for `Attempt.answered_at`.

    Send the offset, because nobody can find it out later: it tells at which hour of the learner's
    own day a question was answered. The server orders and schedules answers by the instant alone.
    """
    now = datetime.now(UTC)
    offset = now.astimezone().utcoffset() or timedelta()
    # RFC 3339 counts an offset in minutes.
    minutes = round(offset / timedelta(minutes=1))
    return now.astimezone(timezone(timedelta(minutes=minutes))).isoformat(timespec="milliseconds")
