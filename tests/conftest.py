"""Fixtures for every test: a database and a broker vhost of the test's own.

The servers are real, and come from the environment: `./dev test` sets it.
"""

pytest_plugins = ["tests.database_fixtures", "tests.broker_fixtures"]
