"""Servers where identity is required, and a worker that answers the devices."""

from tests.security.conftest import settings, viewers

__all__ = ["settings", "viewers"]
