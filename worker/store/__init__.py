"""The tables, and set-based queries over them, with one file for each concern.

This package knows SQL and decides nothing: what it writes comes from the core.
"""
