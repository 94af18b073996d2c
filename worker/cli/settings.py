"""The command `settings`: every setting with its value, its default and its description."""

import json
import re
from inspect import cleandoc
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from worker.cli.answers import answer
from worker.cli.shared import load_settings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_INTRODUCTION: Final = """\
<!-- Generated from worker/settings by `study-ingest settings --markdown`. Do not edit. -->

# Settings

Every setting is an environment variable. Times are in seconds. Lists are written as JSON, such as
`[1, 5, 30]`. `study-ingest settings` shows the values in the current environment, and URLs without
their passwords."""

_SECRET: Final = re.compile(r"((?:^|&)[^=&]*(?:password|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)
"""A parameter of a URL that is not for everybody."""


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("settings")(show)


def show(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/settings.md: all settings and defaults.")
    ] = False,
) -> None:
    """Shows every setting with its value in this environment and its description.

    Passwords are never shown.

    Example: INGEST_LANES=4 study-ingest settings
    """
    if as_markdown:
        typer.echo(markdown(), nl=False)
        return
    from worker.settings import Settings

    settings = load_settings()
    values = {
        name: _shown(getattr(settings, name))
        for group in Settings.groups()
        for name in group.model_fields
    }
    if as_json:
        answer({_variable(name): value for name, value in values.items()})
        return
    table = Table()
    for heading in ("setting", "value", "description"):
        table.add_column(heading, overflow="fold")  # names that are cut off may look the same
    for group in Settings.groups():
        table.add_section()
        for name, field in group.model_fields.items():
            table.add_row(_variable(name), values[name], field.description)
    Console().print(table)


def markdown() -> str:
    """The page docs/settings.md: a table for each group of settings."""
    from worker.settings import Settings

    parts = [_INTRODUCTION]
    for group in Settings.groups():
        heading, _, explanation = (group.__doc__ or "").partition("\n")
        parts.append(f"## {heading}")
        if explanation:
            parts.append(cleandoc(explanation))
        rows = [
            f"| `{_variable(name)}` | {_default(field)} | {field.description} |"
            for name, field in group.model_fields.items()
        ]
        parts.append("\n".join(["| variable | default | description |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _without_password(url: str) -> str:
    """The URL with its user, hosts and words. Whatever may be a part of a password becomes ***."""
    scheme, _, rest = url.partition("://")
    place, mark, words = rest.partition("?")
    if "@" in words and ":" in place and "@" not in place:
        return f"{scheme}://***"  # a password that is not escaped may contain anything
    login, at, server = place.rpartition("@")
    user, colon, _ = login.partition(":")
    shown = f"{user}:***" if colon else user
    return f"{scheme}://{shown}{at}{server}{mark}" + _SECRET.sub(r"\1***", words)


def _variable(name: str) -> str:
    return f"INGEST_{name.upper()}"


def _default(field: "FieldInfo") -> str:
    if field.is_required():
        return "*required*"
    return "" if field.default is None else f"`{_shown(field.default)}`"


def _shown(value: object) -> str:
    from pydantic import SecretStr

    if isinstance(value, SecretStr):
        return _without_password(value.get_secret_value())
    if isinstance(value, tuple):
        return json.dumps(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
