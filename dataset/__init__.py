"""Commands that make and inspect record sets; `object_detection.convert` does the work."""
