"""What the worker tells the people who run it."""
