"""A run read again: why this row, what entered and left; and the cache of measured signals."""
