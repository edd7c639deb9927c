"""Agreement with the published code."""
