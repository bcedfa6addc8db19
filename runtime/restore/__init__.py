"""Frames in, restored frames out: the Restorer, and the job that takes a clip through it."""
