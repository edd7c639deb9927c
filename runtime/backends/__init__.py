"""The backends that run networks: one protocol, and a file or a folder for each backend."""
