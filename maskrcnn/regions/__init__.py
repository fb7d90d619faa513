"""What happens to regions, in this order: proposals, targets, losses, detections."""
