"""Copies everything a node holds to another place, and back."""
