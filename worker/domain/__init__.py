"""The pure core: scoring an answer, and folding a history of answers into progress.

Plain functions over plain values. They read no clock and do no I/O, and know no database row and no
message model.
"""
