"""Stored samples: rows, sets of them, and the files that hold them."""
