"""The demo's command line. It is read before anything starts, with the standard library alone."""

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The parser for `./dev demo`."""
    made = argparse.ArgumentParser(
        prog="./dev demo", description="Runs the whole system and accounts for every delivery."
    )
    made.add_argument(
        "--batches",
        type=_at_least_two,
        default=400,
        metavar="N",
        help="simulated sessions (default 400)",
    )
    made.add_argument(
        "--review-log", type=_file, metavar="FILE", help="feed a real review log (CSV) instead"
    )
    made.add_argument(
        "--console",
        action="store_true",
        help="afterwards let viewers go on studying, and serve the web console until Ctrl-C",
    )
    made.add_argument("--json", action="store_true", help="print one JSON object at the end")
    return made


def _at_least_two(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 2 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 2 and 1,000,000")
    return int(text)


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return path.resolve()
