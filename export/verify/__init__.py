"""Compare a backend's results with those of the float32 reference."""
