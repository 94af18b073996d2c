"""The question bank of a run, and how the phones, which are other processes, get it."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from demo import bank
from demo.bank import CHOICES, Question, publish

__all__ = ["CHOICES", "Question", "load", "made_up", "publish", "save"]

_DELETED_SHARE: Final = 0.03


def made_up(seed: int, users: int, questions_each: int) -> list[Question]:
    """A bank, always the same for the same seed."""
    rng = random.Random(seed)
    return bank.made_up(rng, users, questions_each, deleted_share=_DELETED_SHARE)


def save(path: Path, questions: Sequence[Question]) -> None:
    """Writes the bank for the viewers."""
    path.write_text(json.dumps([asdict(question) for question in questions]))


def load(path: Path) -> list[Question]:
    """Reads what `save` wrote."""
    return [Question(**fields) for fields in json.loads(path.read_text())]
