"""The relay's settings, and the reasons for the defaults. All times are in seconds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    """What a viewer's author can change without changing code."""

    declare_results_queue: bool = True
    """Whether the relay declares its queues, of results and of progress. Set it to False if an
    operator has created them and the viewer's login may not. True would also work, but every
    refusal is a line in the broker's log.
    """

    connect_timeout: float = 10.0
    """The longest time to connect and log in, over a bad mobile network."""

    answer_timeout: float = 10.0
    """The longest time for any other request to the broker, such as declaring the queue."""

    publish_timeout: float = 15.0
    """The longest wait for a confirm. After it the outcome is unknown, and the batch is published
    again.
    """

    close_timeout: float = 3.0
    """The longest time to close a connection to a broker that may not answer. aiormq itself gives
    up after 2.
    """

    heartbeat: int = 10
    """The AMQP heartbeat, unless the URL has one. A dead connection is noticed within 33
    seconds.
    """

    retry_delay_min: float = 0.5
    """The first delay after a failure. It doubles each time, and is shortened by up to half at
    random, so that viewers that lost the broker together do not come back together.
    """

    retry_delay_max: float = 60.0
    """The longest delay after a failure, which is how late a viewer may notice that it is online
    again.
    """

    keep_progress: bool = True
    """Whether to keep the progress of the viewer's users on this device, for `Outbox.due`."""

    progress_patience: float = 10.0
    """How long to wait for a page of progress before asking again. The time doubles up to
    `progress_patience_max`.
    """

    progress_patience_max: float = 60.0
    """The longest such wait. Pages and requests live a minute."""

    progress_interval: float = 900.0
    """How often to ask for progress although nothing says that it has changed, because what says so
    may be lost; and how long to do without progress after the broker or the server refused it.
    """

    poll_interval: float = 1.0
    """How often the relay looks at the outbox if nobody calls `wake`."""

    result_timeout: float = 900.0
    """A batch that has no result this long after its confirm is published again, because results
    are lost if their queue does not exist. The time doubles each time.
    """

    result_timeout_max: float = 86_400.0
    """The longest wait for a result. Publishing once a day does not harm any backlog."""

    check_patience: float = 10.0
    """How long to wait for the server to say which batches it has, before asking again. The time
    doubles up to `check_patience_max`.
    """

    check_patience_max: float = 3_600.0
    """The longest such wait. An older server does not answer."""

    resend_rate: float = 10.0
    """How many batches that the server has lost are published again in a second, on average. After
    a loss, many viewers do so at once.
    """

    prefetch: int = 20
    """The number of results in hand at once. Each is one short write to SQLite."""
