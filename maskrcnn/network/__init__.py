"""The network alone: backbone, neck, heads, anchors; callable without targets or losses."""
