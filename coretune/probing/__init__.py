"""What a run will cost on this machine: a short run of the same configuration, timed."""
