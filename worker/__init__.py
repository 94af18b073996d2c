"""The worker: consumes attempt batches, and gives each its effect exactly once.

docs/architecture.md shows the way of a batch through these files, and the layers.
"""

__version__ = "0.2.0"
