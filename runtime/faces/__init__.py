"""Photographs: faces found, aligned, restored and pasted back."""
