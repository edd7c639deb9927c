"""Export torch modules to ONNX graphs, compare these with eager float32, and pack them into a bundle."""
