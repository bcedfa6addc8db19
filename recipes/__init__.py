"""What stands above both sides: demonstration, full size, comparisons, acceptance on a GPU."""

from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "build.py"
"""The build side's command line, for recipes that run its commands in processes of their own."""
