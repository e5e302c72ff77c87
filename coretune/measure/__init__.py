"""Model and rows in, arrays out: per-example signals at little more than the cost of a forward pass.

`signals.measurer` is the door; `settings.MeasureSettings` says how. Importing this package imports no torch.
"""
