"""Many machines: Ray Serve and Ray Data."""
