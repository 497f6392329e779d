"""Checkpoints: files of weights as lazy sources with Hugging Face names (see README.md)."""
