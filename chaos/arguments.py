"""The command line of the chaos run. It is read before anything starts, with the standard library
alone.
"""

import argparse


def parser() -> argparse.ArgumentParser:
    """The parser for `./dev chaos`."""
    made = argparse.ArgumentParser(
        prog="./dev chaos",
        description="Kills and cuts servers, workers, viewers and links, and proves that nothing"
        " was lost and nothing doubled.",
    )
    made.add_argument("--seconds", type=float, default=60, help="how long (default 60)")
    made.add_argument("--seed", type=int, help="the same seed gives the same schedule")
    made.add_argument(
        "--pace", type=float, default=1.8, help="seconds between faults, on average (default 1.8)"
    )
    made.add_argument(
        "--rate", type=float, default=1.5, help="sessions per second of each viewer (default 1.5)"
    )
    made.add_argument(
        "--patience",
        type=float,
        default=120,
        help="longest time for the drain, in seconds (default 120)",
    )
    made.add_argument(
        "--only",
        action="append",
        metavar="KIND",
        help="only this kind of fault; can be given several times",
    )
    made.add_argument(
        "--partitions",
        type=int,
        default=1,
        metavar="N",
        help="partitions of the queue at the start; with more than 1, their number changes during"
        " the run (default 1)",
    )
    made.add_argument(
        "--failover",
        action="store_true",
        help="run a primary with a synchronous replica and three nodes of the broker, and lose some"
        " of them for good",
    )
    made.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return made
