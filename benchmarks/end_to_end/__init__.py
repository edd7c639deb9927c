"""Whole photographs, folders, videos and servers."""
