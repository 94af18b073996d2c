"""The measured figures as tables for a person: ratios first."""

from typing import Any

from rich.console import Console


def show(measured: dict[str, Any], console: Console) -> None:
    """Prints them."""
    console.print({k: v for k, v in measured.items() if k != "raw"})
