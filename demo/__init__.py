"""`./dev demo`: the whole system at work, with realistic trouble, and an honest account of it.

Uses the real servers, the real worker processes and the real outbox library. Everything happens
in a database and a vhost of the demo's own, which stay to be looked at until the next demo.
"""

from typing import Final

DATABASE: Final = "study_demo"
"""The database that it makes anew each time, and leaves for people to look at."""
