"""Compiles diffusion video super-resolution into engines, and runs them at video rate."""
