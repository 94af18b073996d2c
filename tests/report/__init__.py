"""The learner's picture: its numbers, and how it looks."""
