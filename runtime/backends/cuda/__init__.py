"""NVIDIA GPUs: cuda-python's bindings, the device that all GPU backends share, its kernels."""
