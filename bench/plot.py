"""Curves as PNG and SVG."""

from typing import Any


def draw(measured: dict[str, Any]) -> None: ...
