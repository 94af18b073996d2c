"""What the JSON API sends."""

from schemas.rounds import AnswerOut, RoundOut

__all__ = ["AnswerOut", "RoundOut"]
