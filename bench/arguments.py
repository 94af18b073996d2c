"""The benchmark's command line: read before anything starts, with the standard library alone."""

import argparse


def parser() -> argparse.ArgumentParser:
    """Of `./dev bench`."""
    made = argparse.ArgumentParser(
        prog="./dev bench",
        description="Measures the worker beside others that leave the same rows.",
    )
    made.add_argument("--json", action="store_true", help="one JSON object on the last line")
    made.add_argument("--plot", action="store_true", help="draw into docs/performance/")
    made.add_argument("--full", action="store_true", help="tuning and growth: some 13 minutes")
    made.add_argument("--rounds", type=int, metavar="N", help="default 3, with --full 5")
    made.add_argument(
        "--batches", type=int, metavar="N", help="in each run; a slow contender gets an eighth"
    )
    made.add_argument("--no-peers", action="store_true", help="leave the frameworks out")
    made.add_argument("--tiny", action="store_true", help="sizes that only show that it works")
    return made
