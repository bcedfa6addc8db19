"""Acceptance on a GPU: one command that builds, verifies and measures, and writes one report.

Nothing is measured here: each step is a command that a user could type, and its own output is what is reported.
"""
