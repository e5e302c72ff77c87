"""The user's rows, tokenised once and frozen.

raw.py read ─► records.py recognised ─► encode.py tokenised ─► freeze.py ordered ─► Corpus (corpus.py)
"""
