"""A quiz on the web: choose a topic, answer five questions, see which were right."""
