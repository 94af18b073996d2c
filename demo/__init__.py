"""`./dev demo`: the whole system at work, with realistic trouble, and an honest account of it.

Uses the real servers, the real worker processes and the real outbox library. Everything happens
in a database and a vhost of the demo's own, which stay to be looked at until the next demo.
"""
