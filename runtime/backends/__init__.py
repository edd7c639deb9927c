"""Where networks run: one protocol, a file or a folder a backend."""
