"""The benchmark: how fast the worker is, compared with other programs that do the same work.

`__main__` runs it. `workload` creates what is ingested, `stage` the databases and queues, and
`contenders` lists the programs. `race` times one of them, and `latency`, `floor` and `growth`
measure the rest. `figures` turns raw numbers into ratios. The worker is only used as an operator or
PostgreSQL would use it: through its command line, its settings and its tables. Only `reference`
calls the ingest step, to get the right rows.
"""
