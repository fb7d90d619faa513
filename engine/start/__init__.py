"""Flags, process and ranks, checks of settings and folder, the folder's lock, advice on memory."""
