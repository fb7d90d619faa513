"""Box maths, each idea a file: overlap, coding, anchors, matching, suppression, RoIAlign."""
