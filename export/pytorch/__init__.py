"""PyTorch as a backend: the eager reference, and a compiled one on GPUs."""
