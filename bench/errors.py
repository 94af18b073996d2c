"""The benchmark's only error."""


class BenchError(Exception):
    """Something makes the figures worthless. The text is one sentence for a person."""
