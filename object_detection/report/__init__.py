"""A report of an evaluation: what was found, what was not, and what the errors are."""
