"""torch modules and other people's files to ONNX graphs."""
