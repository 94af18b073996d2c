"""Servers where identity is required, and a worker that runs beside the examples."""

from tests.security.conftest import settings, viewers

__all__ = ["settings", "viewers"]
