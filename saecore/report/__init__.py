"""Recorded runs, the paper's numbers, the two side by side, and every figure of the book."""
