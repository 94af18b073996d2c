"""The errors of the viewer's library, in one tree.

    OutboxError
     +- BatchRefused      recording a batch that no worker would accept
     +- UuidReused        recording other content under a uuid that is in the outbox
     +- NoTransaction     recording on a connection without an open transaction
     +- OutboxTooNew      opening tables that a newer version of this library created
     +- RelayRunning      starting a second relay for one outbox
     +- RelayStopped      waiting for a relay that no longer runs

Problems with the broker are not errors: the relay waits until they end, and shows them in its
status.
"""

from pathlib import Path
from uuid import UUID

from study_viewer.schemas.errors import Rejection


class OutboxError(Exception):
    """The base class of all errors of this library."""


class BatchRefused(OutboxError):
    """The worker would reject the batch. `rejection` has the reason and one sentence."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.detail)
        self.rejection = rejection


class UuidReused(OutboxError):
    """A uuid belongs to one session for ever. Other content needs another uuid."""

    def __init__(self, client_session_uuid: UUID) -> None:
        super().__init__(
            f"client_session_uuid {client_session_uuid} is in the outbox with other content:"
            " make a new uuid for every session"
        )
        self.client_session_uuid = client_session_uuid


class NoTransaction(OutboxError):
    """The connection is in autocommit mode, and no transaction is open on it."""

    def __init__(self) -> None:
        super().__init__(
            "the connection is in autocommit mode and has no open transaction: BEGIN one, so that"
            " the session and its batch are stored together"
        )


class OutboxTooNew(OutboxError):
    """A newer version of this library has upgraded the tables. Older code does not touch them."""

    def __init__(self, path: Path, found: int, known: int) -> None:
        super().__init__(
            f"the outbox in {path} has version {found} and this library knows {known}:"
            " upgrade study-ingest-viewer"
        )


class RelayRunning(OutboxError):
    """An outbox has only one relay, because otherwise the order would be lost."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"another relay is running for the outbox in {path}: stop it first")


class RelayStopped(OutboxError):
    """The relay does not run, so the wait would never end. The cause is what ended the relay, if
    anything.
    """

    def __init__(self) -> None:
        super().__init__("the relay is not running: start it")
