"""What a round is made of: settings, clock, state, what measures rows, and the rows that training gets.

schedule.py who selects, how much, when ─► order.py a round's rows ─► sampler.py its batches
"""
