"""The wire: what viewers, workers and follow-up services say to each other.

Imports nothing of the worker's or the viewer's, so that either side, or a viewer in another
language, can be written from this package (or its `published/` documents) alone.
"""
