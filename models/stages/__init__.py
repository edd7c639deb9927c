"""The modules that are exported: each wraps a network so that one call is one stage of a chain."""
