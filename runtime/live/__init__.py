"""A camera or stream, restored as it comes."""
