"""The protocol: its files, and the modules made of them."""
