"""Model and rows in, arrays out: per-example signals at little more than the cost of a forward pass.

`signals.measurer` makes a measurement; `settings.MeasureSettings` says how. Importing this imports no torch.
"""
