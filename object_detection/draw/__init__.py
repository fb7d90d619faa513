"""Boxes, masks and their labels on pictures."""
