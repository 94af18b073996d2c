"""What a viewer does about each reason, in a sentence for its author."""

from collections.abc import Mapping
from typing import Final

from .words import RejectReason, SkipReason

OF_REJECTION: Final[Mapping[RejectReason, str]] = {
    RejectReason.MALFORMED: "Correct the viewer: the body does not match the schema. Do not send"
    " this batch again.",
    RejectReason.TOO_LARGE: "Correct the viewer: record shorter batches.",
    RejectReason.UNSUPPORTED_VERSION: "Publish a version that the workers know, or ask the operator"
    " to upgrade them. A newer major version waits for such a worker instead.",
    RejectReason.UNIDENTIFIED_PUBLISHER: "Set user_id to the login, and use it in the routing key."
    " Then publish the session under a new uuid.",
    RejectReason.PRINCIPAL_NOT_GRANTED: "Ask the operator to grant this viewer the owner of the"
    " questions, and to replay the batch.",
    RejectReason.MIXED_PRINCIPALS: "Record one batch for each owner of questions.",
    RejectReason.NOTHING_RESOLVED: "Tell the person that the questions are no longer published, and"
    " update them.",
    RejectReason.NOTHING_TO_SCORE: "Do not record sessions without an answer.",
    RejectReason.UUID_REUSED: "Correct the viewer: other content came under this uuid before. Make"
    " a new uuid for each session.",
    RejectReason.RETRIES_EXHAUSTED: "Keep the batch. An operator can replay it; then it is ingested"
    " after all.",
    RejectReason.DELIVERY_LIMIT: "Keep the batch, and ask the operator to look at it.",
    RejectReason.EXPIRED: "Publish the batch again, without the property expiration.",
}

OF_SKIP: Final[Mapping[SkipReason, str]] = {
    SkipReason.UNKNOWN_PUBLICATION: "Update the questions: no question has this id.",
    SkipReason.WITHDRAWN: "Remove the question: its publication was withdrawn.",
    SkipReason.QUESTION_DELETED: "Remove the question: its owner deleted it.",
    SkipReason.NO_ANSWER: "Nothing: it had neither a choice nor is_unsure.",
    SkipReason.ERASED: "Delete the answer: it was given before the person's history was erased.",
}
