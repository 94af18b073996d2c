"""Writes the published documents, or checks that they are current.

python -m schemas write
python -m schemas check     # exits with 1 and names the first stale file
"""

import sys
from pathlib import Path

from .documents import documents

PUBLISHED = Path(__file__).parent / "published"


def main(arguments: list[str], folder: Path = PUBLISHED) -> int:
    """Runs `write` or `check` on `folder`. Returns the exit code."""
    match arguments:
        case ["write"]:
            write(folder)
        case ["check"]:
            if (stale := stale_file(folder)) is not None:
                sys.stderr.write(f"{stale} is not current: run `python -m schemas write`\n")
                return 1
        case _:
            sys.stderr.write(__doc__ or "")
            return 2
    return 0


def write(folder: Path) -> None:
    """Writes the current documents into `folder`, and deletes all other JSON files there."""
    folder.mkdir(exist_ok=True)
    current = documents()
    for found in folder.glob("*.json"):
        if found.name not in current:
            found.unlink()
    for name, text in current.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def stale_file(folder: Path) -> Path | None:
    """The first file in `folder` that is missing, outdated or left over. None if all are
    current.
    """
    current = documents()
    for name, text in current.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            return path
    left_over = (path for path in sorted(folder.glob("*.json")) if path.name not in current)
    return next(left_over, None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
