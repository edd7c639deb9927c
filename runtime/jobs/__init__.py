"""Runs over files and folders: read, restore, write, report."""
