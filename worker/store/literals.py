"""Parameters that are cheaper to send as text than as the driver encodes them."""

from collections.abc import Iterable


def array(values: Iterable[str | int]) -> str:
    """An array of numbers, truth values or words of ours, none of them null or in need of quotes.

    To be cast to its type by the statement. The driver asks of each element whether it is an
    array itself, which takes longer than writing it down.
    """
    return "{" + ",".join(map(str, values)) + "}"
