"""The wire: the messages that viewers, workers and follow-up services exchange.

This package imports nothing from the worker or the viewer's library. Either side, or a viewer in
another language, can be written from this package or from its `published/` documents alone.
"""
