"""Batches as they were sent once, which every later version must take."""
