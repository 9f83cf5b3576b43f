"""Figures of a model's outputs in numpy: each is defined here once, and nothing here needs torch."""
