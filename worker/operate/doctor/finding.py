"""The result of a check: its severity, what was found, and what to do."""

from typing import Literal, NamedTuple

from worker.errors import IngestError

Severity = Literal["ok", "note", "warning", "danger"]
"""`danger`: messages or data can be lost, or nothing works. `warning`: it will cause trouble one
day. `note`: worth knowing, but nothing has to be done.
"""


class Finding(NamedTuple):
    """One sentence about what was found, and one about what to do. The second is empty if nothing
    has to be done.
    """

    check: str
    severity: Severity
    found: str
    remedy: str = ""


def of_error(check: str, error: IngestError) -> Finding:
    """An error of ours as a finding of the worst kind, in two whole sentences."""
    found, remedy = error.found.rstrip("."), error.remedy
    return Finding(check, "danger", f"{found}.", f"{remedy[:1].upper()}{remedy[1:]}")
