"""The command `settings`: every setting, its value here, its default and why that default."""

import json
from typing import Annotated

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from worker.settings import Settings, load_settings


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("settings")(show)


def show(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="All settings and defaults, as the README has them.")
    ] = False,
) -> None:
    """Shows every setting: its value in this environment, and why its default.

    Secrets are never shown.

    Example: INGEST_LANES=4 study-ingest settings
    """
    if as_markdown:
        typer.echo(markdown())
        return
    settings = load_settings()
    values = {_variable(name): _shown(getattr(settings, name)) for name in Settings.model_fields}
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    table = Table("setting", "value", "what it is, and why its default")
    for name, field in Settings.model_fields.items():
        table.add_row(_variable(name), values[_variable(name)], field.description)
    Console().print(table)


def markdown() -> str:
    """A Markdown table of every setting, its default and its description."""
    rows = [
        f"| `{_variable(name)}` | {_default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(
        ["| variable | default | what it is, and why that default |", "|---|---|---|", *rows]
    )


def _variable(name: str) -> str:
    return f"INGEST_{name.upper()}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    return "" if field.default is None else f"`{_shown(field.default)}`"


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        return "(set)"
    if isinstance(value, tuple):
        return json.dumps(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
