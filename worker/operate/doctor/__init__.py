"""The doctor: looks for everything that is known to bite, and says what to do about each.

One file for each place to look: our own settings, the broker, the database. Changes nothing;
a check that can't be made (no right to look, a server away) is a finding too.
"""

from worker.operate.doctor.examine import examine
from worker.operate.doctor.finding import Finding, Severity

__all__ = ["Finding", "Severity", "examine"]
