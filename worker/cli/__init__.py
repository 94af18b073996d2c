"""The command line `study-ingest`: one file for each kind of work.

Translates between a person and the rest: settings in, sentences, tables, exit codes out. No
logic of its own.
"""

from worker.cli.main import main

__all__ = ["main"]
