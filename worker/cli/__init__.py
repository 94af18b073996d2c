"""The command line `study-ingest`, with one file for each kind of work.

This package reads options and settings, calls the operations, and prints sentences, tables and exit
codes. It contains no logic of its own.
"""

from worker.cli.main import main

__all__ = ["main"]
