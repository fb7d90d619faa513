"""The network alone: backbone, BiFPN, heads; callable without targets or losses."""
