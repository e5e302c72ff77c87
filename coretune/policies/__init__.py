"""Whom a refresh measures again, and how what it finds spreads to the rows it did not measure.

paper.py  GRACE's, as published · anchors.py  which anchors are planned · update.py  what measured rows tell
Ours: reuse.py deferral.py  what is measured again, and when first
narrowing.py  the method's signals of few rows alone · approximation.py  how close to a full measurement
"""
