"""Checkpoints, and the weight files of other programs; reading never executes what is read."""
