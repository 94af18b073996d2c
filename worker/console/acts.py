"""Acts: each asks, takes a reason, and is done by a form that only this console can have made."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from starlette.requests import Request

from worker.console.who import Role
from worker.store.audit import By


@dataclass(frozen=True, slots=True)
class Question:
    """What a person is asked before an act."""

    title: str
    consequences: tuple[str, ...]
    """Sentences that say what will happen."""
    button: str
    back: str
    """The page to return to if the answer is no."""
    hidden: Mapping[str, str] = field(default_factory=dict)
    """Fields that the form sends back."""
    is_final: bool = False
    """Whether it can't be undone."""
    amount: int | None = None
    """How many things it is about, if fewer can be chosen."""


class Done(NamedTuple):
    """What was done, as a sentence, and the page that shows it."""

    said: str
    address: str


class Act(NamedTuple):
    """An act by its path. `do` writes the audit in the name of the person."""

    path: str
    ask: Callable[[Request], Awaitable[Question]]
    do: Callable[[Request, Mapping[str, str], By], Awaitable[Done]]
    role: Role = Role.ACT
