"""What a check finds: how bad it is, what it is, and what to do."""

from typing import Literal, NamedTuple

Severity = Literal["ok", "note", "warning", "danger"]
"""`danger`: messages or data can be lost, or nothing works. `warning`: it will hurt one day.
`note`: worth knowing; nothing has to be done."""


class Finding(NamedTuple):
    """One sentence on what is there, and one on what to do (none when there is nothing to do)."""

    check: str
    severity: Severity
    found: str
    remedy: str = ""


def by_sentence(check: str, sentence: str) -> Finding:
    """A danger out of an error of ours, whose sentences are `what it is: what to do.`"""
    found, colon, remedy = sentence.rpartition(": ")
    if not colon:
        return Finding(check, "danger", sentence, "")
    return Finding(check, "danger", f"{found}.", f"{remedy[:1].upper()}{remedy[1:]}")
