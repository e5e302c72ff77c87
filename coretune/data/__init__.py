"""The user's rows, tokenised once and frozen.

sources.py ─► finding.py ─► records.py read ─► gather.py recognised ─► render.py, encode.py tokenised
─► freeze.py ordered ─► Corpus (corpus.py)
"""
