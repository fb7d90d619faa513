"""From the names of a weight file to the variables of the network."""
