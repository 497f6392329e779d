"""A server under all sorts of traffic for a long time, and what it must not do meanwhile."""
