"""RabbitMQ: its topology, connections, publishing, consuming, and the management API."""
