"""Videos: read, faces followed, restored, written."""
