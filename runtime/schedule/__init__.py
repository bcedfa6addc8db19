"""The schedule: what happens to frames, in which order, in which memory. Data, which every device executes."""
