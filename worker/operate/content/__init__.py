"""The study application's content, where its tables are ours: bringing it in, and checking it."""
