"""The server: one machine, many GPUs, or a cluster, on Ray Serve."""
