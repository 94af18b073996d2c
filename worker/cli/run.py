"""Commands that run until they are stopped: `worker` and `relay`."""

import typer

from worker.cli.shared import load_settings, run


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(worker)
    app.command()(relay)


def worker() -> None:
    """Consumes attempt batches, and relays the outbox, until SIGTERM.

    It waits for a database or a broker that is unreachable. You can run any number of workers.

    Example: INGEST_DATABASE_URL=... INGEST_AMQP_URL=... study-ingest worker
    """
    from worker.cli import process

    run(process.run_worker(load_settings()))


def relay() -> None:
    """Relays the outbox until SIGTERM, and does nothing else.

    Use it with workers that run with INGEST_RELAY_IN_WORKER=false.

    Example: study-ingest relay
    """
    from worker.cli import process

    run(process.run_relay(load_settings()))
