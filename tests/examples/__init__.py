"""Each example, run as its README says."""
