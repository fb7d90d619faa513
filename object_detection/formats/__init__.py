"""Annotation formats other than COCO's: each is read into COCO's instances form."""
