"""Quality on faces whose truth is known."""
