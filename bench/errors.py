"""The benchmark's one error."""


class BenchError(Exception):
    """Something that makes figures worthless; the text is one sentence for a person."""
