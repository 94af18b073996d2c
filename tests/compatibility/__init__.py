"""Recorded batches, which every later version must accept."""
