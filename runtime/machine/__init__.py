"""What this machine has and how its shell behaves: memory, processor, GPU, signals and pipes."""
