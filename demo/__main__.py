"""`python -m demo`, which `./dev demo` runs after it has started the servers."""

import asyncio
import sys

from rich.console import Console

from demo import living, play
from demo.arguments import parser
from devtools.places import in_home
from worker.errors import IngestError
from worker.settings import load_settings


def main() -> int:
    """Returns 0 only if nothing is lost and everything stored is right."""
    arguments = parser().parse_args()
    if arguments.console and arguments.review_log:
        parser().error("--console needs the simulated users, and so no --review-log")
    logs = in_home("demo")
    console = Console(stderr=arguments.json)
    try:
        settings = load_settings()
        report = asyncio.run(
            play.from_review_log(settings, arguments.review_log, logs, console)
            if arguments.review_log
            else play.simulated(settings, arguments.batches, logs, console)
        )
        report.show(console)
        if arguments.json:
            print(report.as_json())
        if arguments.console:
            questions = play.simulated_questions()
            asyncio.run(living.live(settings, questions, logs, console))
    except IngestError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0 if report.ok else 1


sys.exit(main())
