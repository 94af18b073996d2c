"""The pure core: what an answer is worth, and what a history of answers comes to.

Plain functions over plain values: no clock, no I/O, no database row, no message model.
"""
