"""Decides which series are complete, and which MR and PET belong together."""
