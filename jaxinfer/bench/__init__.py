"""Measurements: how fast, and how far from what the machine could do."""
