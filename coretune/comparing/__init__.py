"""Arms beside each other, at equal steps and at equal compute."""
