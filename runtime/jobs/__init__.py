"""Files and folders: read, restored, written, reported."""
