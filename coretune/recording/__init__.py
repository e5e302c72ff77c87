"""What a run writes down while it goes: why each row, what of its pool, what it says of a selection."""
