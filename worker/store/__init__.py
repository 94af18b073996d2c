"""The tables, and set-based queries over them, one file for each concern.

Knows SQL; knows nothing of the broker, and decides nothing: what to write comes from the core.
"""
