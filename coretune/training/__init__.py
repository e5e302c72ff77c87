"""The seam to transformers and TRL: their trainers, on a changing coreset.

train.py, mixin.py are the trainers; whatever else here they lean on.
"""
