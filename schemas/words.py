"""The words with a fixed set of values, as they appear in messages, columns, logs and metrics.

These are enumerations without a message model or a library, so that the pure core of the worker can
import them.
"""

from enum import StrEnum
from typing import Final, Self


class Outcome(StrEnum):
    """The outcome of an attempt."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNSURE = "unsure"


# For code that runs for each attempt: before Python 3.12 an attribute of an enumeration takes ten
# times as long as a name.
CORRECT: Final = Outcome.CORRECT
WRONG: Final = Outcome.WRONG
UNSURE: Final = Outcome.UNSURE


class Pattern(StrEnum):
    """The pattern of a question's whole history. The first that applies counts, in this order."""

    MASTERED = "mastered"
    LEECH = "leech"
    STUCK = "stuck"
    RELAPSED = "relapsed"
    RECOVERING = "recovering"
    HESITANT = "hesitant"
    KNOWN = "known"
    LEARNING = "learning"


class Status(StrEnum):
    """What happened to an attempt batch, as its viewer learns it."""

    INGESTED = "ingested"
    ALREADY_INGESTED = "already_ingested"
    REJECTED = "rejected"


class Reason(StrEnum):
    """A word that says why something did not count, with what its viewer does about it."""

    advice: str
    """A sentence for the viewer's author. The published documents contain it."""

    # Type checkers take a look-up by the word alone for a call of this, hence the default.
    def __new__(cls, word: str, advice: str = "") -> Self:
        assert advice, f"the reason {word} has no advice for its viewer"
        reason = str.__new__(cls, word)
        reason._value_ = word
        reason.advice = advice
        return reason


class SkipReason(Reason):
    """Why an attempt was skipped while the rest of its batch was ingested."""

    UNKNOWN_PUBLICATION = "unknown_publication", "Update the questions: no question has this id."
    WITHDRAWN = "withdrawn", "Remove the question: its publication was withdrawn."
    QUESTION_DELETED = "question_deleted", "Remove the question: its owner deleted it."
    NO_ANSWER = "no_answer", "Nothing: it had neither a choice nor is_unsure."
    ERASED = "erased", "Delete the answer: it was given before the person's history was erased."


class TimeWas(StrEnum):
    """Why an attempt's time as sent was replaced."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    TOO_EARLY = "too_early"
    IN_THE_FUTURE = "in_the_future"


class RejectReason(Reason):
    """Why a delivery became a dead letter."""

    MALFORMED = (
        "malformed",
        "Correct the viewer: the body does not match the schema. Do not send this batch again.",
    )
    TOO_LARGE = "too_large", "Correct the viewer: record shorter batches."
    UNSUPPORTED_VERSION = (
        "unsupported_version",
        "Publish a version that the workers know, or ask the operator to upgrade them. A newer"
        " major version waits for such a worker instead.",
    )
    UNIDENTIFIED_PUBLISHER = (
        "unidentified_publisher",
        "Set user_id to the login, and use it in the routing key. Then publish the session under a"
        " new uuid.",
    )
    NOTHING_RESOLVED = (
        "nothing_resolved",
        "Tell the person that the questions are no longer published, and update them.",
    )
    MIXED_PRINCIPALS = (
        "mixed_principals",
        "Record one batch for each owner of questions. A batch that names a user must name this"
        " owner.",
    )
    PRINCIPAL_AMBIGUOUS = (
        "principal_ambiguous",
        "Name one of this viewer's users in the header study-principal, and publish the batch"
        " again.",
    )
    PRINCIPAL_NOT_GRANTED = (
        "principal_not_granted",
        "Ask the operator to grant this viewer the owner of the questions, and to replay the"
        " batch.",
    )
    NOTHING_TO_SCORE = "nothing_to_score", "Do not record sessions without an answer."
    UUID_REUSED = (
        "uuid_reused",
        "Correct the viewer: other content came under this uuid before. Make a new uuid for each"
        " session.",
    )
    RETRIES_EXHAUSTED = (
        "retries_exhausted",
        "Keep the batch. An operator can replay it; then it is ingested after all.",
    )
    DELIVERY_LIMIT = "delivery_limit", "Keep the batch, and ask the operator to look at it."
    EXPIRED = "expired", "Publish the batch again, without the property expiration."


class StartsOver(StrEnum):
    """Why a page of progress does not continue from the viewer's cursor."""

    FIRST = "first"
    """The viewer has none."""
    UNKNOWN_CURSOR = "unknown_cursor"
    """It is no cursor of this user."""
    ANOTHER_EPOCH = "another_epoch"
    """The database was restored, or another server has taken over."""
    AHEAD = "ahead"
    """The server has never had that version, so it has lost data."""
    ERASED = "erased"
    """The user's history was erased after that version."""


class Next(StrEnum):
    """What comes after a page of progress."""

    PAGE = "page"
    """Another page of the same answer."""
    ASK = "ask"
    """Nothing by itself: there is more, so ask at once with the new cursor."""
    NOTHING = "nothing"
    """The viewer has everything."""


class RefusalReason(Reason):
    """Why a request for progress was refused."""

    MALFORMED = "malformed", "Correct the viewer: the body does not match the schema."
    UNSUPPORTED_VERSION = (
        "unsupported_version",
        "Send a version that the workers know, or ask the operator to upgrade them.",
    )
    USER_AMBIGUOUS = "user_ambiguous", "Name one of this viewer's users in user_id."
    USER_NOT_GRANTED = (
        "user_not_granted",
        "Ask the operator to grant this viewer the user. Do not ask again before.",
    )
