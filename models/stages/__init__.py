"""What is exported: networks wrapped so that one call is one stage of a chain."""
