"""What is deployed: a folder with a manifest and the networks' files."""
