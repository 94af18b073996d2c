"""A broker that requires identity, which is the default."""

from tests.security.conftest import settings, viewers

__all__ = ["settings", "viewers"]
