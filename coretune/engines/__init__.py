"""How a greedy selection is made: here or on a GPU, in one round or two, as memory and deadline ask."""
