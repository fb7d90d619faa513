"""Command-line tools that make and inspect record sets; `object_detection.data` does the work."""
