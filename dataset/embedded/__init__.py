"""The data set that the quick start draws for itself: scenes, photographs, their annotations."""
