"""The server's work: photographs around the networks, and faces through them."""
