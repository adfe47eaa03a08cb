"""A synthetic patient made by code, and the demonstration that sends it through a whole node."""
