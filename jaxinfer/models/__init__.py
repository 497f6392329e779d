"""Decoders: one that builds any stack, and the families that say which stack a checkpoint is."""
