"""What a size takes, told before anything is loaded: memory, engines, schedule, time."""
