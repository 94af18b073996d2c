"""The result of a check: its severity, what was found, and what to do."""

from typing import Literal, NamedTuple

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


def by_sentence(check: str, sentence: str) -> Finding:
    """A danger from one of our errors, whose text is `what was found: what to do.`"""
    found, colon, remedy = sentence.rpartition(": ")
    if not colon:
        return Finding(check, "danger", sentence, "")
    return Finding(check, "danger", f"{found}.", f"{remedy[:1].upper()}{remedy[1:]}")
