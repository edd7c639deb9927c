"""What the networks are, where their weights come from, and how a checkpoint is loaded safely."""
