"""The usual handler, and the frameworks on which it runs: what the worker is compared with.

Each message is one transaction of SQLAlchemy's ORM, with a query for each step. The handler is the
same everywhere. Each framework around it is set up as its own documentation recommends for late
acks. Scoring, folding and summaries are the worker's own pure functions, so that only the shape
differs. It runs in an environment of its own if a framework needs older clients.
"""
