"""What stands above both sides: demonstration, full size, comparisons, acceptance on a GPU."""
