"""Masks: run lengths, PNG, pasting, rows for the scorer."""
