"""What the viewer's library raises, as one small tree.

OutboxError
 +- BatchRefused      recording a batch that no worker would take
 +- UuidReused        recording other content under a uuid that is in the outbox
 +- NoTransaction     recording on a connection that has no transaction to join
 +- OutboxTooNew      opening tables that a newer version of this library made
 +- RelayRunning      starting a second relay for one outbox
 +- RelayStopped      waiting for a relay that no longer runs

Trouble with the broker is not among them: the relay waits it out, and shows it in its status.
"""

from pathlib import Path
from uuid import UUID

from study_viewer.schemas.errors import Rejection


class OutboxError(Exception):
    """The root of everything that this library raises by itself."""


class BatchRefused(OutboxError):
    """The worker would reject the batch as it is; `rejection` has the reason and one sentence."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.detail)
        self.rejection = rejection


class UuidReused(OutboxError):
    """A uuid stands for one session for ever; other content needs a uuid of its own."""

    def __init__(self, client_session_uuid: UUID) -> None:
        super().__init__(
            f"client_session_uuid {client_session_uuid} is in the outbox with other content:"
            " make a new uuid for every session"
        )
        self.client_session_uuid = client_session_uuid


class NoTransaction(OutboxError):
    """The connection commits every statement by itself, and no transaction is open on it."""

    def __init__(self) -> None:
        super().__init__(
            "the connection is in autocommit mode and has no open transaction: BEGIN one, so that"
            " the session and its batch are stored together"
        )


class OutboxTooNew(OutboxError):
    """The tables were upgraded by a newer version of this library; older code leaves them be."""

    def __init__(self, path: Path, found: int, known: int) -> None:
        super().__init__(
            f"the outbox in {path} has version {found} and this library knows {known}:"
            " upgrade study-ingest-viewer"
        )


class RelayRunning(OutboxError):
    """One outbox has one relay, or the order would be lost."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"another relay is running for the outbox in {path}: stop it first")


class RelayStopped(OutboxError):
    """Nothing waited for can happen any more; what ended the relay is the cause, if anything."""

    def __init__(self) -> None:
        super().__init__("the relay is not running: start it")
