"""What a run says: console, JSON lines, TensorBoard, meters, profiles."""
