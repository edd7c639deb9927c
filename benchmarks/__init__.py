"""Latency, throughput, memory and quality, side by side with eager PyTorch."""
