"""Runs registrations in worker processes, and survives their death."""
