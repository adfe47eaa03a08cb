"""Delivers results to destinations, and tells transient failures from permanent ones."""
