"""The worker's own errors: one small tree.

IngestError                 anything the worker says in one sentence
├── SettingsError           a setting is missing or unreadable          exit 2
├── SchemaError             the database's schema is not this version's exit 3
├── TopologyError           the broker is not set up safely             exit 4
├── ViewerError             a viewer's name or grant is not as asked    exit 2
├── RoleError               a database role is not a worker's           exit 2
├── NoHistory               there is nothing to report of a user        exit 1
├── NotConfirmed            nobody was there to say yes                 exit 2
├── Unfinished              some of it is left for another time         exit 1
├── DatabaseAway            the database can't be reached now           paused, waited for
├── BrokerAway              the broker can't be reached now             waited for
├── Stuck                   the worker makes no progress                exit 7
├── TransientFault          this group failed in a way that may pass    run apart, deferred
│   └── UuidTaken           another transaction received a uuid of it   run again at once
└── Unconfirmed             a publish was refused or not confirmed      tried again
"""


class IngestError(Exception):
    """Anything the worker says to a person in one sentence, which is the exception's text."""

    exit_code = 1


class SettingsError(IngestError):
    """Raised at start when a setting is missing or unreadable; names the variable."""

    exit_code = 2


class SchemaError(IngestError):
    """Raised at start when the database's schema is older or newer than this program's."""

    exit_code = 3


class TopologyError(IngestError):
    """Raised when the broker's exchanges, queues or policies are missing or unsafe."""

    exit_code = 4


class NoHistory(IngestError):
    """Raised by `report` for a user who has answered nothing."""


class RoleError(IngestError):
    """Raised by `database-role` for a role that must not be cut down to a worker's rights."""

    exit_code = 2


class ViewerError(IngestError):
    """Raised by the `viewer` commands when a name is taken, unknown or unusable."""

    exit_code = 2


class NotConfirmed(IngestError):
    """Raised by a destructive command without --yes where nobody can be asked."""

    exit_code = 2


class Unfinished(IngestError):
    """Raised by a command that did what it could, and has to be run again for the rest."""


class DatabaseAway(IngestError):
    """Raised by the store when the database can't be reached; nothing is said of any message."""

    exit_code = 5


class BrokerAway(IngestError):
    """Raised by commands when the broker can't be reached."""

    exit_code = 6


class Stuck(IngestError):
    """Raised by a worker that makes no progress, so that its supervisor starts another."""

    exit_code = 7


class TransientFault(IngestError):
    """Raised by the store for a deadlock, a serialization failure or a timeout."""


class UuidTaken(TransientFault):
    """Raised by the inbox when another transaction has received a uuid since it was looked up."""


class Unconfirmed(IngestError):
    """Raised by a publisher when the broker did not take a message: its fate is unknown."""
