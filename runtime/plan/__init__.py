"""What a size takes, known before anything is loaded: memory, engines, schedule, time."""
