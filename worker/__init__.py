"""The worker: consumes attempt batches and makes each one's effect exactly once.

Imports go one way: cli -> consumer, relay, repair -> ingest -> store, domain -> schemas.
"""
