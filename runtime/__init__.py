"""What runs in production: images in, restored images out. NumPy, OpenCV and ONNX Runtime; never torch."""
