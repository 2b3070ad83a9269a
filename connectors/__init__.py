"""Kafka, Redis and the embedded servers: they move bytes and know no learning."""
