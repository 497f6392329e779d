"""Asks a server for more than one person would, and measures what comes of it."""
