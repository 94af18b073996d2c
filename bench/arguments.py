"""The benchmark's command line. It is read before anything starts, with the standard library
alone.
"""

import argparse
from typing import Final

WORKLOADS: Final = (
    *("late", "hot_user", "even", "flood", "rescore", "shared_bank"),
    *("rejected", "dead", "asking", "two_viewers", "old_names", "capacity", "consoles"),
)
"""Those of `bench.busy`, `bench.letters`, `bench.devices`, `bench.capacity` and `bench.consoles`,
each of which can run alone.
"""


def parser() -> argparse.ArgumentParser:
    """The parser for `./dev bench`."""
    made = argparse.ArgumentParser(
        prog="./dev bench",
        description="Compares the worker with other programs that leave the same rows.",
    )
    made.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    made.add_argument("--plot", action="store_true", help="draw the pictures in docs/performance/")
    made.add_argument(
        "--full", action="store_true", help="also measure tuning and growth (about 13 minutes)"
    )
    made.add_argument("--rounds", type=int, metavar="N", help="default 3, with --full 5")
    made.add_argument(
        "--batches", type=int, metavar="N", help="in each run; a slow contender gets an eighth"
    )
    made.add_argument("--no-peers", action="store_true", help="leave out the frameworks")
    made.add_argument(
        "--only", choices=WORKLOADS, metavar="NAME", help=f"one workload: {', '.join(WORKLOADS)}"
    )
    made.add_argument(
        "--tiny", action="store_true", help="use tiny sizes, which only show that it works"
    )
    return made
