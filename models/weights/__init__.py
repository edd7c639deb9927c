"""Where weights come from: fetched, read safely, or made from their names."""
