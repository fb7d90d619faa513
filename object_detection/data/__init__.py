"""Annotated images on disk: COCO JSON in, TFRecord shards and a data card out, and back again.

Reading for training (`reader`, `example`) needs TensorFlow; everything that writes or describes a
record set (`schema`, `card`, `coco_json`, `convert`) does without it.
"""
