"""Aligned faces in, restored faces out."""
