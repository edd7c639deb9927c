"""Clients of `bfr serve`."""
