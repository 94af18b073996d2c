"""What leaves the database for the broker: rows of the outbox, and dead letters to be replayed."""
