"""The schema's versions, one small file for each; run by `study-ingest migrate`."""
