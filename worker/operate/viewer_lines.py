"""Files of viewers: one viewer and one user in each line. Pure."""

from typing import IO, Annotated, Final

from pydantic import AfterValidator, Field

from schemas import amqp
from worker.errors import ViewerError
from worker.operate.lines import Format, NumberedLine


def _can_name(viewer: str) -> str:
    if not amqp.is_viewer(viewer):
        raise ValueError("a viewer's name has 1 to 64 letters, digits, '-' or '_'")
    return viewer


class Line(NumberedLine):
    """A viewer, and a user for whom it may write."""

    viewer: Annotated[str, AfterValidator(_can_name)]
    user_id: Annotated[int, Field(ge=1, lt=2**63)] | None = None


FORMAT: Final = Format(Line, ViewerError, "viewer", ("viewer",))


def read(file: IO[bytes], *, is_csv: bool) -> dict[str, list[int]]:
    """The users of each viewer. Raises `ViewerError` for a line that is not valid, and for none."""
    wanted: dict[str, list[int]] = {}
    for line in FORMAT.read(file, is_csv=is_csv):
        users = wanted.setdefault(line.viewer, [])
        if line.user_id is not None and line.user_id not in users:
            users.append(line.user_id)
    if not wanted:
        raise ViewerError("The file has no viewers.")
    return wanted
