"""From torch modules to ONNX graphs, proven against eager float32, in a bundle."""
