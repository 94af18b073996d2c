"""Fixtures for every test: a database and a broker vhost of the test's own.

The servers are real, and come from the environment: `./dev test` sets it.
"""

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import structlog

# A slow or busy machine is no fault of the code.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

pytest_plugins = ["tests.database_fixtures", "tests.broker_fixtures"]


@pytest.fixture(autouse=True)
def _loggers_that_can_be_captured() -> Iterator[None]:
    """A test that configures the logs must not leave loggers behind that the next one can't
    capture: a cached logger keeps its configuration for as long as the process lives.
    """
    configure = structlog.configure

    def without_cache(**given: Any) -> None:
        configure(**given | {"cache_logger_on_first_use": False})

    # Not the test's own `monkeypatch`: that would then be undone after the test's database is gone.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structlog, "configure", without_cache)
        yield
    structlog.reset_defaults()
