"""Formats whose annotations are JSON, other than COCO's."""
