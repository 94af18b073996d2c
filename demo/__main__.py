"""`python -m demo`: run by `./dev demo`, which brings the servers."""

import argparse
import asyncio
import sys
from pathlib import Path

from rich.console import Console

from demo import play
from worker.errors import IngestError
from worker.settings import load_settings

_LOGS = Path(".dev/demo")


def _at_least_two(text: str) -> int:
    number = int(text)
    if not 2 <= number <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not between 2 and 1,000,000")
    return number


def main() -> int:
    """Returns 0 only when nothing is lost and everything stored is what it should be."""
    parser = argparse.ArgumentParser(
        prog="./dev demo", description="Runs the whole system and accounts for every delivery."
    )
    parser.add_argument(
        "--batches",
        type=_at_least_two,
        default=400,
        metavar="N",
        help="simulated sessions (default 400)",
    )
    parser.add_argument(
        "--review-log", type=Path, metavar="FILE", help="feed a real review log (CSV) instead"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    try:
        settings = load_settings()
        report = asyncio.run(
            play.from_review_log(settings, arguments.review_log, _LOGS, console)
            if arguments.review_log
            else play.simulated(settings, arguments.batches, _LOGS, console)
        )
    except IngestError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    report.show(console)
    if arguments.json:
        print(report.as_json())
    return 0 if report.ok else 1


sys.exit(main())
