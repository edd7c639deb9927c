"""Latency, throughput and memory of backends."""
