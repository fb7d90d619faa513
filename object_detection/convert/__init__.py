"""From annotated images to records and a data card."""
