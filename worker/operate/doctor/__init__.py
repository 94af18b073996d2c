"""The doctor: checks everything that is known to cause trouble, and says what to do about it.

There is one file for each place: our own settings, the broker and the database. It changes nothing.
A check that is not possible (no right to look, an unreachable server) is a finding too.
"""

from worker.operate.doctor.examine import examine
from worker.operate.doctor.finding import Finding, Severity

__all__ = ["Finding", "Severity", "examine"]
