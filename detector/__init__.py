"""What all detector families say alike: their task, input, weights, and how commands see them."""
