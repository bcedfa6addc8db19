"""The command line of the run side."""
