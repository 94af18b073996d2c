"""`./dev chaos`: runs the whole system while faults occur, and then checks that nothing was lost.

The servers, the worker and relay processes and the viewers' outboxes are real. The faults follow a
schedule that a seed decides. After the last fault the run waits until all messages are processed,
and the checker compares the result with docs/contract.md. Nothing here imports the worker.
"""
