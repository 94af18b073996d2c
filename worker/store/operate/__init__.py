"""Queries of the operations; each file has the name of its operation in `worker/operate`."""
