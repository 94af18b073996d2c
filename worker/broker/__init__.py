"""The broker: its topology, its connections, publishing, dead letters.

Knows RabbitMQ and aio-pika; may not know the database, nor what a batch means.
"""
