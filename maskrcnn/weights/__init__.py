"""Weights of other programs: their names, layouts and what is loaded of them."""
