"""`./dev chaos`: the whole system under fire, and a checker that knows nothing of its code.

Real servers, real worker and relay processes, real viewers' outboxes; a seeded schedule of
faults; then heal, drain, check. Nothing here imports the worker: it is driven and judged from
outside, by the contract alone.
"""
