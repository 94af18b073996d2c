"""`settings` says which servers are used, and never a password."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from worker.cli.main import app
from worker.cli.settings import markdown

SECRET = "s3cr%40t"


def shown(*words: str, **variables: str) -> str:
    result = CliRunner().invoke(app, ["settings", *words], env={"COLUMNS": "250"} | variables)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"postgresql://u:{SECRET}@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgresql://u@h1:1,h2:2/d", "postgresql://u@h1:1,h2:2/d"),
        (
            f"postgresql:///d?host=/run/pg&user=u&password={SECRET}&application_name=a",
            "postgresql:///d?host=/run/pg&user=u&password=***&application_name=a",
        ),
        (
            f"postgresql://h/d?sslmode=verify-full&sslkey=k&SSLPASSWORD={SECRET}".replace(
                "SSLPASSWORD", "sslpassword"
            ),
            "postgresql://h/d?sslmode=verify-full&sslkey=k&sslpassword=***",
        ),
    ],
)
def test_the_database_is_shown_without_its_password(url: str, expected: str) -> None:
    variables = {"INGEST_DATABASE_URL": url, "INGEST_AMQP_URL": "amqp://h"}
    assert json.loads(shown("--json", **variables))["INGEST_DATABASE_URL"] == expected
    table = shown(**variables)
    assert expected in table and SECRET not in table


def test_the_broker_is_shown_without_its_password() -> None:
    found = json.loads(
        shown(
            "--json",
            INGEST_DATABASE_URL="postgresql://h/d",
            INGEST_AMQP_URL=f"amqps://guest:{SECRET}@h:5671/v?cafile=/etc/ca.pem",
            # Not escaped, which the last @ ends.
            INGEST_MANAGEMENT_URL="https://admin:p@ss:w@h:15671",
        )
    )
    assert found["INGEST_AMQP_URL"] == "amqps://guest:***@h:5671/v?cafile=/etc/ca.pem"
    assert found["INGEST_MANAGEMENT_URL"] == "https://admin:***@h:15671"


@pytest.mark.parametrize("columns", ["60", "80", "250"])
def test_no_name_is_cut_off(columns: str) -> None:
    servers = {"INGEST_DATABASE_URL": "postgresql://h/d", "INGEST_AMQP_URL": "amqp://h"}
    text = shown(COLUMNS=columns, **servers)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    names = json.loads(shown("--json", **servers))
    first = "".join(
        line.split("\N{BOX DRAWINGS LIGHT VERTICAL}")[1].strip()
        for line in text.split("\n")
        if line.startswith("\N{BOX DRAWINGS LIGHT VERTICAL}")
    )
    assert all(name in first for name in names)


def test_the_page_of_all_settings_has_no_value_of_this_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INGEST_DATABASE_URL", f"postgresql://u:{SECRET}@somewhere/d")
    assert "somewhere" not in markdown()
