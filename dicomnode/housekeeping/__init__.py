"""Keeps the house: what may go goes, what is kept is checked, and everything that goes is written down."""
