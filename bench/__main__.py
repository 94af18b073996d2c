"""`python -m bench`, which `./dev bench` runs after it has started the servers."""

import json
import sys

from rich.console import Console

from bench import environment, plot, report
from bench.arguments import parser
from bench.errors import BenchError
from bench.meet import Meet, Sizes
from devtools.errors import DevError
from worker.cli.shared import run
from worker.errors import IngestError
from worker.settings import load_settings


def main() -> int:
    """Returns 0 if everything was measured and every contender left the right rows."""
    arguments = parser().parse_args()
    console = Console(stderr=True)
    try:
        sizes = Sizes.tiny() if arguments.tiny else Sizes()
        if arguments.batches:
            sizes = sizes.with_batches(arguments.batches)
        if not arguments.no_peers and not arguments.only:
            environment.ensure()
        # As a worker runs: parts of it are timed in this process.
        measured = run(
            Meet(load_settings(), sizes, console).run(
                rounds=arguments.rounds or (5 if arguments.full else 3),
                with_peers=not arguments.no_peers,
                with_growth=arguments.full,
                only=arguments.only,
            )
        )
        report.show(measured, Console())
        if arguments.plot and not arguments.only:
            plot.draw(measured)
    except (BenchError, DevError, IngestError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if arguments.json:
        print(json.dumps(measured))
    return 0


sys.exit(main())
