"""Selection on a Ray cluster: the passes over a pool on many workers, the decisions in one place."""
