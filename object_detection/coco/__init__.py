"""COCO annotation files and their categories."""
