"""Dead letters: looked at, compared, rehearsed, replayed and discarded."""
