"""The deployment bundle: a folder with a manifest and the networks' files."""
