"""Progress for every device: requests, their answers, and nudges (docs/progress.md)."""
