"""One round after the other: plan ► measure ► absorb ► select, then the rows that training gets.

schedule.py who selects, how much, when ─► dynamic.py a round ─► order.py its rows ─► sampler.py its batches
"""
