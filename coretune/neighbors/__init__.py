"""The k-NN graph: built cell by cell, mended where rows drifted."""
