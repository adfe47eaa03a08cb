"""The only SQL of the node."""
