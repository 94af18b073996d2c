"""The benchmark: how fast the worker is, beside others that do the same work.

`__main__` says what is run; `workload` what is ingested; `stage` on what; `contenders` by whom;
`race` times one of them; `latency`, `floor` and `growth` measure the rest; `figures` turns raw
numbers into ratios. Uses the worker only as an operator or PostgreSQL would: by its command line,
its settings and its tables (`reference` alone calls the ingest step, to know the right rows).
"""
