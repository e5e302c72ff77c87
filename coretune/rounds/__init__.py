"""What a round is made of: settings, schedule, state, what measures rows, and the rows that training gets.

coreset_config.py settings ─► schedule.py steps a round ─► order.py its rows ─► sampler.py its batches
"""
