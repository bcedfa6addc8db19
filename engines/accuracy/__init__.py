"""Is FP16 enough? Ranges on real frames, FP16 graphs from them, and the comparison with FP32 and torch."""
