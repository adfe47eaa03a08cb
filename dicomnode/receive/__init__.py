"""The Storage SCP: admission, durable storage, the index header."""
