"""Proof that a backend computes what the reference computes."""
