"""The worker's own errors, in one tree.

IngestError                 every error that the worker reports to a person
├── SettingsError           a setting is missing or not valid             exit 2
├── InstallationError       a library is not a version that works         exit 2
├── SchemaError             the schema is not the version of this program exit 3
├── TopologyError           the broker is not set up safely               exit 4
├── ViewerError             a viewer's name or grant is not usable        exit 2
├── ContentError            content is not valid, or has no such id       exit 1
├── RecallError             erasures are missing or not valid             exit 2
├── RoleError               a database role cannot become a worker's      exit 2
├── NoHistory               the user has no history to report             exit 1
├── NoBatch                 nothing is stored about a batch               exit 1
├── Pruning                 another worker or command prunes              exit 1
├── NotConfirmed            nobody could confirm a destructive command    exit 2
├── Declined                somebody did not confirm one                  exit 1
├── UsageError              the command line is not valid                 exit 2
├── AddressError            an address or a form of the console is not    exit 2
├── DatabaseAway            the database is unreachable                   the worker pauses
│   └── BehindPooler        a pooler changes how sessions begin           exit 2 at start
├── BrokerAway              the broker is unreachable                     the worker waits
├── DatabaseRefused         the database refused a statement              exit 8
├── Stuck                   the worker makes no progress                  exit 7
├── TransientFault          a group failed, and may succeed later         run one by one, deferred
│   ├── UuidTaken           another transaction has just ingested a uuid  run again at once
│   ├── SessionStale        a table was changed under the session         run again at once
│   └── PrincipalInUse      another transaction holds a user's history    deferred, not counted
└── Unconfirmed             the broker refused or did not confirm         published again
"""


class IngestError(Exception):
    """An error that the worker reports to a person: what was found, and what to do about it.

    `found` names the value. `remedy` is what to do, as a clause; a class may have one for all of
    its errors. The text of the exception is `found: remedy` where the error has one of its own.
    """

    exit_code = 1
    remedy = ""

    def __init__(self, found: str, remedy: str = "") -> None:
        super().__init__(f"{found}: {remedy}" if remedy else found)
        self.found = found
        if remedy:
            self.remedy = remedy


class SettingsError(IngestError):
    """Raised at start if a setting is missing or not valid. The text names the variable."""

    exit_code = 2


class InstallationError(IngestError):
    """Raised at start if an installed library does not work as this program needs it to."""

    exit_code = 2


class SchemaError(IngestError):
    """Raised at start if the database's schema is older or newer than this program's."""

    exit_code = 3


class TopologyError(IngestError):
    """Raised if the broker's exchanges, queues or policies are missing or unsafe."""

    exit_code = 4


class NoHistory(IngestError):
    """Raised by `report` for a user who has not answered anything."""


class NoBatch(IngestError):
    """Raised by `batch show` for a uuid of which nothing is stored, not even a dead letter."""


class ContentError(IngestError):
    """Raised by the `content` commands: a line is not valid, or an id is unknown. Nothing was
    changed.
    """


class AnswersError(IngestError):
    """Raised by `answers import` for a line that is not valid. Nothing was changed."""


class RoleError(IngestError):
    """Raised by `database-role` for a role that must not be reduced to a worker's rights."""

    exit_code = 2


class RecallError(IngestError):
    """Raised by `recall` if the erasures since the backup are missing, or can't be made again."""

    exit_code = 2


class ViewerError(IngestError):
    """Raised by the `viewer` commands if a name is taken, unknown or not valid."""

    exit_code = 2


class Pruning(IngestError):
    """Raised if another worker or command prunes at this moment."""


class NotConfirmed(IngestError):
    """Raised by a destructive command without --yes if there is no terminal to ask on."""

    exit_code = 2


class Declined(IngestError):
    """Raised by a command if the answer to its question was no."""


class UsageError(IngestError):
    """Raised for a command line that names no command, or an option or value that it can't have."""

    exit_code = 2


class AddressError(IngestError):
    """Raised by the console for an address or a form with a value that it can't have."""

    exit_code = 2


class DatabaseAway(IngestError):
    """Raised by the store if the database is unreachable. It says nothing about any message."""

    exit_code = 5
    remedy = "start it, or correct INGEST_DATABASE_URL."


class BehindPooler(DatabaseAway):
    """Raised if a connection pooler does not pass on what a session should begin with."""

    exit_code = 2


class BrokerAway(IngestError):
    """Raised by commands if the broker is unreachable."""

    exit_code = 6
    remedy = "start it, or correct INGEST_AMQP_URL and INGEST_MANAGEMENT_URL."


class DatabaseRefused(IngestError):
    """Raised by commands whose statement the database refused, for want of a right, say."""

    exit_code = 8


class Stuck(IngestError):
    """Raised by a worker that makes no progress, so that its supervisor restarts it."""

    exit_code = 7


class TransientFault(IngestError):
    """Raised by the store for a deadlock, a serialization failure or a timeout."""


class UuidTaken(TransientFault):
    """Raised by the inbox if another transaction has ingested a uuid since it was looked up."""


class SessionStale(TransientFault):
    """Raised by the store when a session's prepared statements are older than the tables."""


class PrincipalInUse(TransientFault):
    """Raised if another transaction did not release a user's history within the lock timeout."""


class NoTurn(TransientFault):
    """Raised if too many ingest transactions were at work for longer than the lock timeout."""


class Unconfirmed(IngestError):
    """Raised by a publisher if the broker did not confirm a message: its fate is unknown."""
