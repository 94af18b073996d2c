"""`./dev demo`: runs the whole system with realistic faults, and accounts for every delivery.

It uses the real servers, real worker processes and the real outbox library. Everything happens in a
database and a vhost of the demo's own, which stay until the next demo, so that you can look at
them.
"""

from typing import Final

DATABASE: Final = "study_demo"
"""The database that each demo creates again, and leaves for you to look at."""
