"""The usual handler, and the frameworks that it is run on: what the worker is compared with.

One message is one transaction of SQLAlchemy's ORM, with a query for each step. The handler is
the same everywhere; around it each framework is set up as its own documentation recommends for
acknowledging late. Scoring, folding and summaries are the worker's own pure functions, so that
only the shape differs. Runs in an environment of its own where a framework needs older clients.
"""
