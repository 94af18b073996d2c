"""What an operator does to the data and the dead letters: one file for each operation.

Each is one transaction for each principal, under the principal's lock; doing it again changes
nothing more; `verify` finds nothing amiss afterwards. Knows the store and the broker; may not
know the terminal.
"""
