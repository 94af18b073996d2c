"""The relay's settings, and why each default. All times are in seconds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    """What a viewer's author may change without changing code."""

    declare_results_queue: bool = True
    """Whether the relay makes its results queue. False where an operator has made it and the
    viewer's login may not: it would work as well, but every refusal stands in the broker's log."""

    connect_timeout: float = 10.0
    """Reaching the broker and logging in, over a bad mobile network."""

    answer_timeout: float = 10.0
    """Any other question to the broker, such as declaring the queue."""

    publish_timeout: float = 15.0
    """One confirm. Beyond it the outcome is unknown, and the batch is published again."""

    close_timeout: float = 3.0
    """Saying goodbye to a broker that may no longer listen; aiormq itself gives up after 2."""

    heartbeat: int = 10
    """AMQP heartbeat, unless the URL has one: a dead peer is noticed within 33 seconds."""

    retry_delay_min: float = 0.5
    """First wait after a failure; doubles each time, and is shortened by up to half at random,
    so that viewers that lost the broker together do not come back together."""

    retry_delay_max: float = 60.0
    """Longest wait after a failure: how late a viewer may notice that it is online again."""

    poll_interval: float = 1.0
    """How often the outbox is looked at when nobody called `wake`."""

    result_timeout: float = 900.0
    """A batch without a result this long after its confirm is published again: a result is lost
    when its queue was not there. Doubles each time."""

    result_timeout_max: float = 86_400.0
    """Longest wait for a result: once a day does no harm to any backlog."""

    prefetch: int = 20
    """Results in hand at once; each is one short write to SQLite."""
