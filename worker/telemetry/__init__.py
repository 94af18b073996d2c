"""Logs, metrics, traces and probes: what the worker reports to the people who run it."""
