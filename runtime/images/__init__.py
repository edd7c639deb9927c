"""Image files: decoded, encoded, their metadata."""
