"""Fetch weights, find them, read them safely, or generate them from their names."""
