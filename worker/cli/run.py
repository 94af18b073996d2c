"""Commands that run until they are stopped: `worker`, `relay` and `console`."""

import typer

from worker.cli.asking import by
from worker.cli.shared import load_settings, run


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(worker)
    app.command()(relay)
    app.command()(console)


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


def console() -> None:
    """Serves the web console until SIGTERM: pages that show what runs, and forms that repair it.

    Without further settings it serves only this machine, at port 9465, and logs a token to sign in
    with. INGEST_CONSOLE_TOKENS gives people tokens and roles of their own. The login of its
    database needs the rights of an operator.

    Example: study-ingest console
    """
    from worker.console.serve import serve

    run(serve(load_settings(), by("").actor))
