"""Restore a live camera or stream."""
