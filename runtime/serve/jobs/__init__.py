"""The server's long jobs, on disk."""
