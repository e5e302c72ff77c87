"""Whom a refresh looks at again, and how what it finds spreads to the rows it did not look at."""
