"""One command for a GPU that is there for ten minutes."""
